"""The ways to multiply the blocks of a layer: what the graph computes, and what it leaves out."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import onnx
import pytest
from helpers import make_network, plan_of, random_pixels

from lipdeploy.arithmetic import FLOAT32
from lipdeploy.artifact import Manifest, make_manifest
from lipdeploy.errors import ExportError, ModelError, ShapeError
from lipdeploy.exporters import onnx_spectral
from lipdeploy.exporters.freeze import freeze, layer_shapes
from lipdeploy.exporters.onnx import build_model
from lipdeploy.exporters.onnx_cost import CostModel
from lipdeploy.exporters.onnx_file import onnx_bytes, parse_onnx
from lipdeploy.exporters.onnx_graph import GraphBuilder
from lipdeploy.exporters.onnx_grid import Grid, Wanted
from lipdeploy.exporters.onnx_layer import skeleton
from lipdeploy.exporters.onnx_operators import emit_operator
from lipdeploy.exporters.onnx_probe import _operands, keeps_order, keeps_precision
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.exporters.plan import Choice, LayerShape, candidates, make_plan
from lipdeploy.frozen import (
    ChannelMax,
    FrozenNetwork,
    Linear,
    MaxMin,
    Operation,
    ProjectionPooling,
    Shift,
    SpaceToDepth,
)
from lipdeploy.heads import LinearHead
from lipdeploy.operators import Convertible, LinearOperator
from lipdeploy.rounding import Accumulation, Rounding
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.spectral import PRODUCTS, Products, Spectral, SpectralConv
from lipdeploy.structure import describe, restore
from lipdeploy.taylor import TaylorConv
from lipdeploy.tiled import TiledConv

CLASSES = ("ant", "bee", "cow")
WAYS = tuple(itertools.starmap(Choice, itertools.product(("spectral", "fused"), (1, 2), PRODUCTS)))
"""All that a spectral operator can be."""


@pytest.fixture(params=[((), 64), ((4, 2), 64), ((2,), 2)], ids=str)
def strips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of channels so narrow that the networks of these tests have some; or none.

    With the last one strips have long sums, too, which are cut.
    """
    widths, short = request.param
    monkeypatch.setattr(onnx_spectral, "STRIPS", widths)
    monkeypatch.setattr(onnx_spectral, "SHORT", short)


def manifest_of(network: FrozenNetwork, accumulation: Accumulation = "blocked") -> Manifest:
    size, versions = {"size": network.image_size}, {"lipdeploy": "test"}
    rounding = Rounding.of_graph(FLOAT32, accumulation)
    return make_manifest(network, CLASSES, size, {}, versions, rounding)


@pytest.mark.usefixtures("strips")
@pytest.mark.parametrize("offset", range(12))
@pytest.mark.parametrize("pooling", ["max", "projection"])
@pytest.mark.parametrize("size", [8, 9])
def test_layers_that_hold_images_in_different_ways_follow_each_other(
    size: int, pooling: str, offset: int
) -> None:
    """Each layer in another way, so that most pairs of ways meet."""
    trained = make_network(1, size, head="mlp", pooling=pooling)
    ways = [candidates(shape) for shape in layer_shapes(trained)]
    plan = [found[(offset + 5 * place) % len(found)] for place, found in enumerate(ways)]
    check_answers(freeze(trained, plan=plan).stored_as("float32"))


@pytest.mark.parametrize("choice", [way for way in WAYS if way.products == "vectors"], ids=str)
def test_strips_as_wide_as_they_are(choice: Choice) -> None:
    """64 channels and 32, read as they were written, as cells, and in halves."""
    first, second = LayerShape(8, 3, 128, 3, "circular"), LayerShape(4, 256, 64, 3, "circular")
    operations = (
        Shift((1, 2, 3)),
        drawn(skeleton(first, choice)),
        ChannelMax(),
        SpaceToDepth(),
        drawn(skeleton(second, choice), 4, 4),
        MaxMin(),
        drawn(skeleton(replace(second, in_channels=64), choice)),
        ChannelMax(),
    )
    draw = np.random.default_rng(0)
    head = LinearHead(draw.normal(size=(3, 512)) / 23, draw.normal(size=3))
    network = FrozenNetwork(8, operations, head).stored_as("float32")
    check_answers(network, "same-order")
    model = build_model(network, manifest_of(network, "same-order"), prepared=True)
    stacks = [t.dims for t in model.graph.initializer if "blocks" in t.name and len(t.dims) == 6]
    assert {64, 32} <= {dims[-1] for dims in stacks}


def test_odd_numbers_of_strips_are_halved_and_become_cells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of channels that pair off, of cells, with a bias for each place, and merged with parity."""
    monkeypatch.setattr(onnx_spectral, "STRIPS", (4,))
    vectors = Choice("spectral", products="vectors")
    trained = make_network(1, 16, width=6)
    network = freeze(trained, plan=plan_of(trained, "auto", "vectors")).stored_as("float32")
    check_answers(network, "same-order")
    for channels, places in ((8, ()), (24, (12, 12))):
        shape = LayerShape(12, 3, channels, 3, "circular")
        after = LayerShape(6, 2 * channels, 8, 3, "circular")
        operations: list[Operation] = [
            Shift((1, 2, 3)),
            drawn(skeleton(shape, vectors), *places),
            ChannelMax(),
            MaxMin(),
            SpaceToDepth(),
            drawn(skeleton(after, vectors), *[6] * len(places)),
            ChannelMax(),
        ]
        draw = np.random.default_rng(0)
        head = LinearHead(draw.normal(size=(3, 144)) / 12, draw.normal(size=3))
        network = FrozenNetwork(12, tuple(operations), head).stored_as("float32")
        check_answers(network, "same-order")


def test_no_layer_takes_even_and_odd_rows_apart() -> None:
    operator = skeleton(LayerShape(4, 4, 4, 3, "circular"), Choice("spectral"))
    with pytest.raises(ExportError, match="no layout that a linear layer takes"):
        emit_operator(operator, GraphBuilder(), Grid(("x",), 4, 4, "parity"), "layer", Wanted())


def drawn(operator: LinearOperator, *places: int) -> Linear:
    """An operator with random weights, and a bias, one for each place if asked for."""
    draw = np.random.default_rng(operator.grid)

    def normal(array: np.ndarray) -> np.ndarray:
        return draw.normal(size=array.shape) / np.sqrt(4 * array.shape[-1])

    assert isinstance(operator, Convertible)
    if isinstance(operator, TaylorConv):
        taps = normal(operator.taps) / 4
        made: Convertible = replace(operator, taps=taps - taps[::-1].transpose(0, 2, 1))
    else:
        made = operator.converted(normal, normal)
    return Linear(made, draw.normal(size=(*places, made.out_channels)))


@pytest.mark.usefixtures("strips")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("first", WAYS, ids=str)
def test_any_form_follows_images_as_rows(first: Choice, dtype: str) -> None:
    """Tiles, series and matrices, biases of each place, of weights that are cast or not."""
    whole, half, tile = (LayerShape(n, 4, 4, 3, "circular") for n in (12, 6, 8))
    columns = skeleton(tile, Choice("spectral"))
    assert isinstance(columns, SpectralConv)
    rows = drawn(skeleton(whole, first), 12, 12)
    others = (
        TiledConv(12, 3, columns),
        skeleton(whole, Choice("taylor")),
        skeleton(replace(whole, kernel_size=1), Choice("pointwise")),
        skeleton(whole, Choice("spectral")),
    )
    operations: list[Operation] = [
        Shift((1, 2, 3)),
        drawn(skeleton(replace(whole, in_channels=3), Choice("spectral"))),
        *itertools.chain(*((rows, MaxMin(), drawn(other)) for other in others)),
        SpaceToDepth(),
        drawn(skeleton(replace(half, in_channels=16, out_channels=16), first), 6, 6),
        ProjectionPooling(),
        drawn(skeleton(replace(half, in_channels=8, out_channels=8), first)),
        ChannelMax(),
        SpaceToDepth(),
    ]
    draw = np.random.default_rng(0)
    head = LinearHead(draw.normal(size=(3, 144)) / 12, draw.normal(size=3))
    check_answers(FrozenNetwork(12, tuple(operations), head).stored_as(dtype))


@pytest.mark.usefixtures("strips")
@pytest.mark.parametrize("how", ["", "rows", "vectors"])
def test_a_network_may_end_on_a_grid(how: str) -> None:
    trained = make_network(2, 64)
    network = freeze(trained, plan=plan_of(trained, "auto", how)).stored_as("float32")
    assert list(network.linear())[-1].operator.grid == 2
    check_answers(network)


def check_answers(network: FrozenNetwork, accumulation: Accumulation = "blocked") -> None:
    """What is stored and what runs both compute the network, for any number of images."""
    engine = parse_onnx(onnx_bytes(network, manifest_of(network, accumulation)), "test")
    for data in (engine.prepared, engine.data):
        runtime = OnnxRuntime(data, "cpu")
        for count in (1, 3):
            pixels = random_pixels(count, network.image_size)
            exact = network.features(pixels)
            answers = runtime.run(pixels.astype(np.float32))
            for found, expected in zip(answers, (exact, network.head.logits(exact)), strict=True):
                limit = 1e-4 * np.abs(expected).max()
                np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


@pytest.mark.usefixtures("strips")
@pytest.mark.parametrize("with_radius", [False, True])
@pytest.mark.parametrize("how", ["", "x2", "rows", "vectors", "x2 vectors"])
def test_what_runs_has_no_node_that_does_nothing(how: str, *, with_radius: bool) -> None:
    trained = make_network()
    network = freeze(trained, plan=plan_of(trained, "auto", how)).stored_as("float32")
    model = build_model(network, manifest_of(network), prepared=True, with_radius=with_radius)
    outputs = {output.name for output in model.graph.output}
    read = Counter(name for node in model.graph.node for name in node.input)
    assert all(
        any(read[name] or name in outputs for name in node.output) for node in model.graph.node
    )
    assert {tensor.name for tensor in model.graph.initializer} <= set(read)
    reshaped = {node.output[0] for node in model.graph.node if node.op_type == "Reshape"}
    again = [node for node in model.graph.node if node.op_type == "Reshape"]
    assert not [node.name for node in again if node.input[0] in reshaped]


def test_blocks_are_multiplied_in_ways_that_exist() -> None:
    operator = skeleton(LayerShape(4, 4, 4, 3, "circular"), Choice("fused"))
    assert isinstance(operator, Spectral)
    with pytest.raises(ShapeError, match=r"blocks in 'diagonals', expected \('columns', 'rows'"):
        replace(operator, products=cast("Products", "diagonals"))
    large = LayerShape(64, 1, 1, 3, "circular")
    assert "rows" not in {choice.products for choice in candidates(large, "spectral")}
    with pytest.raises(ShapeError, match="2046 blocks one by one, at most 512"):
        skeleton(large, Choice("spectral", products="rows"))
    inner = skeleton(LayerShape(32, 1, 1, 3, "circular"), Choice("spectral", products="vectors"))
    assert isinstance(inner, SpectralConv)
    with pytest.raises(ShapeError, match="images are stacked as columns inside"):
        TiledConv(64, 13, inner)


@pytest.mark.usefixtures("strips")
@pytest.mark.parametrize("how", ["rows", "vectors"])
def test_probes_see_every_product_of_rows(how: str) -> None:
    trained = make_network(image_size=16, width=8)
    network = freeze(trained, plan=plan_of(trained, "auto", how)).stored_as("float32")
    rounding = Rounding.of_graph(FLOAT32, "same-order")
    manifest = make_manifest(network, CLASSES, {}, {}, {}, rounding)
    engine = parse_onnx(onnx_bytes(network, manifest), "test")
    runtime = OnnxRuntime(engine.prepared, "cpu")
    stored = {t.name for t in onnx.load_model_from_string(engine.prepared).graph.initializer}
    for batch in (1, 3):
        operands = list(_operands(engine.prepared, batch))
        assert all(0 not in operand.shape for operand in operands)
        blocks = [name for name in stored if "blocks" in name]
        assert len(operands) >= len(blocks) > (50 if how == "rows" else 5)
        assert keeps_order(runtime, engine.prepared, batch)
        assert keeps_precision(runtime, engine.prepared, batch)


@pytest.mark.parametrize(("block", "side"), [(None, 1), (8, 1), (4, 0)])
def test_single_images_stand_left_of_blocks_unless_sums_are_cut(
    block: int | None, side: int
) -> None:
    graph, shape = GraphBuilder(block, prepared=True), LayerShape(4, 8, 8, 3, "circular")
    operator = skeleton(shape, Choice("fused", products="vectors"))
    emit_operator(operator, graph, Grid(("x",), 4, 8, rows=True), "layer", Wanted())
    products = [node for node in graph.nodes if node.op_type == "MatMul"]
    sides = {i for node in products for i, name in enumerate(node.input) if "blocks" in name}
    assert sides == {side}


def test_the_order_of_each_strip_is_compared_with_that_of_others() -> None:
    """A machine that adds the sums of a strip of one product in another order is found out."""
    trained = make_network(1, 8, width=64)
    network = freeze(trained, plan=plan_of(trained, "auto", "vectors")).stored_as("float32")
    rounding = Rounding.of_graph(FLOAT32, "same-order")
    manifest = make_manifest(network, CLASSES, {}, {}, {}, rounding)
    data = parse_onnx(onnx_bytes(network, manifest), "test").prepared
    assert keeps_order(OnnxRuntime(data, "cpu"), data, 1)
    products = [
        index
        for index, operand in enumerate(_operands(data, 1))
        if operand.constant.ndim == 6 and len(operand.constant) > 1
    ]
    assert len(products) >= 3
    for index, is_other in itertools.product(products, (_is_in_last_strip, _is_odd)):
        assert not keeps_order(_OtherOrderInSomeMatrices(data, index, is_other), data, 1)


def _is_in_last_strip(strips: np.ndarray, _sides: np.ndarray) -> np.ndarray:
    return strips == strips.max()


def _is_odd(strips: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """As black and white squares: each strip is like another one, and so is each side."""
    return (strips + sides) % 2 == 1


class _OtherOrderInSomeMatrices(OnnxRuntime):
    """What keeps every order but that between the matrices (strip, .., side) of one stack."""

    def __init__(self, data: bytes, index: int, is_other: Callable[..., np.ndarray]) -> None:
        super().__init__(data, "cpu")
        self.changed = {f"product_{2 * index}", f"product_{2 * index + 1}"}
        self.is_other = is_other

    def same_device(self, data: bytes) -> OnnxRuntime:
        other = _OtherOrderInSomeMatrices(data, 0, self.is_other)
        other.changed = self.changed
        return other

    def outputs(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = super().outputs(names, inputs)
        changed = []
        for name, array in zip(names, found, strict=True):
            other = array.copy()
            if name in self.changed:
                strips, sides = np.indices((array.shape[0], array.shape[2]))
                matrices = np.moveaxis(other, 2, 1)
                chosen = self.is_other(strips, sides)
                matrices[chosen] = np.nextafter(matrices[chosen], np.inf)
            changed.append(other)
        return changed


def test_engines_that_do_not_pack_get_all_blocks_at_once() -> None:
    large = LayerShape(4, 512, 512, 3, "circular")
    for options in (
        ExportOptions(engine="trt", batch=1),
        ExportOptions(precision="float16", batch=1, accumulation="blocked"),
    ):
        (choice,) = make_plan([large], "auto", options.target, CostModel())
        assert choice.products == "columns"


def test_a_graph_has_a_limit() -> None:
    network = freeze(make_network()).stored_as("float32")
    count = len(build_model(network, manifest_of(network)).graph.node)
    build_model(network, manifest_of(network), most_nodes=count)
    with pytest.raises(ExportError, match=f"a graph of more than {count - 1} nodes; use --form"):
        build_model(network, manifest_of(network), most_nodes=count - 1)


@pytest.mark.parametrize("value", [1, ["rows"], "diagonals", None])
def test_a_file_with_another_way_to_multiply_is_refused(value: object) -> None:
    trained = make_network()
    network = freeze(trained, plan=plan_of(trained, "fused", "rows")).stored_as("float32")
    found = json.loads(json.dumps(describe(network)))
    assert restore(found, network.weights()).largest_values == network.largest_values
    layers = [entry for entry in found["operations"] if "parameters" in entry]
    changed = next(entry for entry in layers if entry["parameters"].get("products") == "rows")
    changed["parameters"]["products"] = value
    with pytest.raises(ModelError, match=r"the (manifest does not describe a )?network"):
        restore(found, network.weights())


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("grid", [1, 2, 4])
@pytest.mark.parametrize(
    "choice",
    [
        Choice("pointwise"),
        Choice("dense"),
        *WAYS,
    ],
    ids=str,
)
def test_no_output_is_cut_into_more_products_than_its_bound_counts(
    choice: Choice, grid: int, *, halves: bool
) -> None:
    """Products of one input with parts of the same stored matrices, no sum being cut."""
    if choice.form == "spectral" and grid < 3:
        grid = 3
    graph, shape = GraphBuilder(prepared=True), LayerShape(grid, 4, 4, 3, "circular")
    operator = skeleton(shape, choice)
    emit_operator(operator, graph, Grid(("x",), grid, 4), "layer", Wanted(halves))
    found = Counter(
        (stored, node.input[1 - side])
        for node in graph.nodes
        if node.op_type == "MatMul"
        for side, name in enumerate(node.input)
        for stored in operator.weights()
        if name.startswith(f"layer.{stored}")
    )
    products = operator._products if isinstance(operator, Spectral) else [operator._product]
    assert found
    assert max(found.values()) <= max(product.nodes for product in products)
