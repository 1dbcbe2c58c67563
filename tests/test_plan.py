"""The planner, its cost model, and measuring."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import make_network, random_pixels

from lipdeploy.arithmetic import FLOAT32
from lipdeploy.engine_error import ErrorAnalysis
from lipdeploy.errors import ExportError
from lipdeploy.exporters import tune
from lipdeploy.exporters.freeze import freeze, layer_shapes
from lipdeploy.exporters.onnx_cost import CostModel, Machine
from lipdeploy.exporters.onnx_layer import layer_graph
from lipdeploy.exporters.plan import Choice, LayerShape, Target, candidates, make_plan
from lipdeploy.exporters.planned import longest_sums, planned_layers, rounding_loss, within_loss
from lipdeploy.exporters.tune import Tuner
from lipdeploy.rounding import Rounding

SHAPE = LayerShape(8, 16, 16, 3, "circular", cells=True, cut=True)
DISTANCE = 1000.0


def test_a_plan_takes_the_cheapest_candidate_of_each_layer() -> None:
    costs = {Choice("spectral"): 3.0, Choice("spectral", 2): 2.0, Choice("fused"): 1.0}
    plan = make_plan([SHAPE] * 2, "auto", Target(), lambda _, choice, __: costs.get(choice, 9.0))
    assert plan == (Choice("fused"), Choice("fused"))


@pytest.mark.parametrize("choice", candidates(SHAPE), ids=str)
def test_multiplications_are_those_of_the_mathematics(choice: Choice) -> None:
    """Blocks: four real products for each complex frequency, one for each real one."""
    used = CostModel().usage(SHAPE, choice, Target(1, Rounding(FLOAT32, "any-order")))
    n, c = SHAPE.grid, SHAPE.in_channels
    blocks = (2 * n * n - 4) * c * c
    if choice.form == "dense":
        assert used.macs == n**4 * c * c
    elif choice.form == "fused":
        back = n * n * (n * n - 4) * (2 // choice.copies) + 4 * n * n
        assert used.macs == blocks + n**4 * c + back * c
    else:
        assert blocks < used.macs < blocks + 4 * n**3 * c * 4


@pytest.mark.parametrize(("batch", "rows"), [(1, True), (8, True), (256, False)])
def test_few_images_multiply_large_blocks_one_by_one(batch: int, *, rows: bool) -> None:
    large = LayerShape(4, 512, 512, 3, "circular", cells=True, cut=True)
    target = Target(batch, Rounding.of_graph(FLOAT32, "same-order"))
    (choice,) = make_plan([large], "auto", target, CostModel())
    assert (choice.products == "rows") == rows


def test_one_image_multiplies_small_blocks_by_itself() -> None:
    small = LayerShape(16, 128, 128, 3, "circular", cells=True, cut=True)
    target = Target(1, Rounding.of_graph(FLOAT32, "same-order"))
    (choice,) = make_plan([small], "auto", target, CostModel())
    assert choice == Choice("spectral", products="vectors")


def test_costs_grow_with_the_batch_and_with_slower_machines() -> None:
    choice = Choice("fused")
    small, large = (CostModel()(SHAPE, choice, Target(batch)) for batch in (1, 64))
    assert small < large < 64 * small
    slow = CostModel(Machine(products=1e9, values=1e9, weights=1e9))
    assert slow(SHAPE, choice, Target(64)) > 5 * large


def test_a_copy_more_reads_twice_the_complex_blocks() -> None:
    target = Target(1, Rounding(FLOAT32, "any-order"))
    once, twice = (
        CostModel().usage(SHAPE, Choice("spectral", copies), target).weight_bytes
        for copies in (1, 2)
    )
    blocks = (8 * 8 - 4) * 16 * 16 * 4
    assert twice - once == pytest.approx(blocks, rel=0.05)


def test_what_was_measured_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache" / "tuning.json"
    first = Tuner(cache)
    seconds = first(SHAPE, Choice("fused"), Target(2))
    assert 0 < seconds < 1
    again = Tuner(cache)
    assert again(SHAPE, Choice("fused"), Target(2)) == seconds
    assert (first.measured, again.measured) == (1, 0)
    assert again(SHAPE, Choice("fused"), Target(3)) > 0
    other = layer_graph(SHAPE, Choice("spectral"), Target(2))
    with monkeypatch.context() as changed:
        changed.setattr(tune, "layer_graph", lambda *_: other)
        assert again(SHAPE, Choice("fused"), Target(2)) > 0
    assert again.measured == 2
    closed = tmp_path / "file"
    closed.write_text("")
    heard: list[str] = []
    assert Tuner(closed / "tuning.json", heard.append)(SHAPE, Choice("fused"), Target(2)) > 0
    assert heard == ["tune: 8 x 8, 16 to 16 channels, fused"]
    cache.write_text("{damaged")
    assert Tuner(cache)(SHAPE, Choice("fused"), Target(2)) > 0
    assert json.loads(cache.read_text())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tune.default_cache() == tmp_path / "lipdeploy" / "tuning.json"


def test_shares_of_the_rounding_error_add_up() -> None:
    network = freeze(make_network()).stored_as("float32")
    shares = ErrorAnalysis(network).shares(Rounding(FLOAT32), DISTANCE)
    assert len(shares) == len(list(network.linear()))
    assert sum(shares) == pytest.approx(1)
    assert all(share > 0 for share in shares)


def test_a_loss_that_was_asked_for_is_kept() -> None:
    model = make_network(width=8, image_size=16)
    shapes, target = layer_shapes(model), Target(1, Rounding(FLOAT32, "any-order"))
    plan = make_plan(shapes, "auto", target, lambda _, c, __: float(c.form != "fused"))
    network = freeze(model, plan=plan).stored_as("float32")
    fastest = rounding_loss(network, target, DISTANCE)
    pixels = random_pixels(3, 16)
    same = within_loss(network, plan, shapes, "auto", target, DISTANCE, 1.01 * fastest)
    assert same == (network, plan)
    with pytest.raises(ExportError, match=r"--accumulation blocked") as refused:
        within_loss(network, plan, shapes, "auto", target, DISTANCE, 1e-9)
    least = float(str(refused.value).split("up to ")[1].split("/255")[0])
    assert least < 0.99 * fastest
    limit = 0.5 * (least + fastest)
    changed, changed_plan = within_loss(network, plan, shapes, "auto", target, DISTANCE, limit)
    assert rounding_loss(changed, target, DISTANCE) <= limit
    assert changed_plan != plan
    np.testing.assert_allclose(changed.features(pixels), network.features(pixels), atol=1e-3)
    forms = [layer.operator.form for layer in changed.linear()]
    assert forms == [choice.form for choice in changed_plan]


def test_sums_are_as_long_as_the_loss_allows() -> None:
    network = freeze(make_network(width=8, image_size=16)).stored_as("float32")
    costs = [
        rounding_loss(network, Target(1, Rounding(FLOAT32, "blocked", block)), DISTANCE)
        for block in (None, 32, 16, 8)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]
    for cost, block in ((costs[0], None), (costs[1], 32), (costs[2], 16), (0.0, 8)):
        chosen = longest_sums(network, Target(1), DISTANCE, cost)
        assert chosen.rounding == Rounding(FLOAT32, "blocked", block)


def test_the_plan_says_what_is_stored() -> None:
    model = make_network()
    shapes, target = layer_shapes(model), Target(4)
    plan = make_plan(shapes, "auto", target, CostModel())
    network = freeze(model, plan=plan).stored_as("float16")
    lines = planned_layers(network, shapes, plan, target, DISTANCE, CostModel())
    stored = sum(w.nbytes for name, w in network.weights().items() if name.startswith("layer"))
    biases = sum(layer.bias.nbytes for layer in network.linear())
    assert sum(line.parameter_bytes for line in lines) == stored - biases
    assert [line.choice for line in lines] == list(plan)
    assert [line.norm_upper for line in lines] == list(network.layer_norms_upper)
