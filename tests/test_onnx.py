"""The ONNX files that are written, and the ones that are refused."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import make_network, plan_of, random_pixels
from onnx import helper

from lipdeploy.arithmetic import FLOAT32
from lipdeploy.artifact import MANIFEST_KEY, Manifest, make_manifest
from lipdeploy.errors import EngineError, ExportError, ModelError, ShapeError
from lipdeploy.exporters import onnx_file
from lipdeploy.exporters.export import export_model
from lipdeploy.exporters.freeze import freeze, layer_shapes
from lipdeploy.exporters.onnx import build_model
from lipdeploy.exporters.onnx_cost import CostModel
from lipdeploy.exporters.onnx_file import onnx_bytes, parse_onnx, read_onnx
from lipdeploy.exporters.onnx_graph import GraphBuilder
from lipdeploy.exporters.onnx_grid import Grid, Wanted
from lipdeploy.exporters.onnx_layer import skeleton
from lipdeploy.exporters.onnx_operators import emit_operator
from lipdeploy.exporters.onnx_probe import _operands, keeps_order, keeps_precision
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.exporters.parity import compare, probe_inputs
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
from lipdeploy.rounding import Rounding
from lipdeploy.runtimes.numpy import NumpyRuntime
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.spectral import PRODUCTS, Products, Spectral, SpectralConv
from lipdeploy.structure import describe, restore
from lipdeploy.taylor import TaylorConv
from lipdeploy.tiled import TiledConv
from lipdeploy.training.checkpoint import ModelCard, TrainedModel, save_model

CLASSES = ("ant", "bee", "cow")
WAYS = tuple(itertools.starmap(Choice, itertools.product(("spectral", "fused"), (1, 2), PRODUCTS)))
"""All that a spectral operator can be."""


def manifest_of(network: FrozenNetwork) -> Manifest:
    return make_manifest(network, CLASSES, {"size": network.image_size}, {}, {"lipdeploy": "test"})


@pytest.fixture
def engine(tmp_path: Path, frozen_network: FrozenNetwork) -> Path:
    path = tmp_path / "engine.onnx"
    path.write_bytes(onnx_bytes(frozen_network, manifest_of(frozen_network)))
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("size", "padding", "form"),
    [
        (8, "circular", "auto"),
        (8, "circular", "spectral"),
        (9, "circular", "spectral"),
        (9, "circular", "fused"),
        (6, "circular", "dense"),
        (8, "zero", "dense"),
        (9, "zero", "taylor"),
    ],
)
@pytest.mark.parametrize("head", ["lln", "mlp"])
def test_the_engine_computes_the_frozen_network(
    tmp_path: Path, size: int, padding: str, form: str, head: str, dtype: str
) -> None:
    network = freeze(make_network(0, size, padding=padding, head=head), form)
    stored = network.stored_as(dtype)
    path = tmp_path / "engine.onnx"
    path.write_bytes(onnx_bytes(stored, manifest_of(stored)))
    engine = read_onnx(path)
    again, manifest = engine.network, engine.manifest
    assert manifest == manifest_of(stored)
    for name, weights in stored.weights().items():
        assert np.array_equal(again.weights()[name], weights), name
        assert again.weights()[name].dtype == weights.dtype
    for runtime in (OnnxRuntime(engine.prepared, "cpu"), OnnxRuntime(engine.data, "cpu")):
        for count in (1, 3):
            pixels = random_pixels(count, size)
            features, logits = runtime.run(pixels.astype(np.float32))
            expected = stored.features(pixels)
            np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(logits, stored.head.logits(expected), rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("how", ["", "rows", "vectors"])
def test_a_network_may_end_on_a_grid(how: str) -> None:
    trained = make_network(2, 64)
    network = freeze(trained, plan=plan_of(trained, "auto", how)).stored_as("float32")
    assert list(network.linear())[-1].operator.grid == 2
    check_answers(network)


def check_answers(network: FrozenNetwork) -> None:
    """What is stored and what runs both compute the network, for any number of images."""
    engine = parse_onnx(onnx_bytes(network, manifest_of(network)), "test")
    for data in (engine.prepared, engine.data):
        runtime = OnnxRuntime(data, "cpu")
        for count in (1, 3):
            pixels = random_pixels(count, network.image_size)
            exact = network.features(pixels)
            answers = runtime.run(pixels.astype(np.float32))
            for found, expected in zip(answers, (exact, network.head.logits(exact)), strict=True):
                limit = 1e-4 * np.abs(expected).max()
                np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


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


def test_the_file_is_plain_onnx_with_the_promised_names(engine: Path) -> None:
    session = onnxruntime.InferenceSession(engine, providers=["CPUExecutionProvider"])
    (given,), outputs = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("pixels", ["batch", 3, 8, 8])
    assert [output.name for output in outputs] == ["features", "logits", "radius"]
    model = onnx.load(engine)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert not any(node.domain for node in model.graph.node)


def test_float16_weights_halve_the_file() -> None:
    network = freeze(make_network(0, 8, width=16))
    sizes = []
    for dtype in ("float16", "float32"):
        stored = network.stored_as(dtype)
        sizes.append(len(onnx_bytes(stored, manifest_of(stored))))
    assert sizes[0] < 0.6 * sizes[1]


def test_the_check_after_writing_passes_and_counts(frozen_network: FrozenNetwork) -> None:
    data = build_model(frozen_network, manifest_of(frozen_network)).SerializeToString()
    pixels = probe_inputs(random_pixels(4, 8), 8)
    manifest = manifest_of(frozen_network)
    parity = compare(frozen_network, manifest, OnnxRuntime(data, "cpu"), pixels)
    assert parity.inputs == len(pixels) == 4 + 16 + 16 + 2
    assert 0 < parity.feature_difference < 1e-3
    assert 0 < parity.share_of_bound < 1
    same = compare(frozen_network, manifest, NumpyRuntime(frozen_network), pixels)
    assert same.feature_difference < 1e-12


def test_an_engine_with_one_changed_weight_fails_the_check(frozen_network: FrozenNetwork) -> None:
    model = build_model(frozen_network, manifest_of(frozen_network))
    for tensor in model.graph.initializer:
        if tensor.name == "layer1.bias":
            values = onnx.numpy_helper.to_array(tensor) + np.float32(0.1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    pixels = probe_inputs(random_pixels(4, 8), 8)
    runtime, manifest = OnnxRuntime(model.SerializeToString(), "cpu"), manifest_of(frozen_network)
    with pytest.raises(ExportError, match=r"features differ from float64 by .* proven for float32"):
        compare(frozen_network, manifest, runtime, pixels)


def test_an_engine_that_returns_nan_fails_the_check(frozen_network: FrozenNetwork) -> None:
    class Broken(NumpyRuntime):
        def run(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            features, logits = super().run(pixels)
            return features * np.nan, logits

    pixels = probe_inputs(random_pixels(1, 8), 8)
    with pytest.raises(ExportError, match="features differ from float64 by nan"):
        compare(frozen_network, manifest_of(frozen_network), Broken(frozen_network), pixels)


def test_files_of_two_gigabytes_are_not_written(
    frozen_network: FrozenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 1000)
    with pytest.raises(ExportError, match="do not fit into one ONNX file"):
        onnx_bytes(frozen_network, manifest_of(frozen_network))


def changed_manifest(path: Path, **changes: object) -> None:
    import json

    model = onnx.load(path)
    values = json.loads(model.metadata_props[0].value) | changes
    helper.set_model_props(model, {MANIFEST_KEY: json.dumps(values)})
    onnx.save(model, path)


def error_bounds(value: float, *names: str) -> dict[str, object]:
    """The same number everywhere, under each of the names that an engine needs or those given."""
    bound = {"constant": value, "slope": value}
    entry = {"features": bound, "logits": bound, "slopes": bound}
    return dict.fromkeys(names or ("float64 any-order", "float32 blocked"), entry)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "export the model again"),
        ({"format_version": 99}, "export the model again"),
        ({"classes": ["a", "b"]}, "do not belong together"),
        ({"lipschitz_upper": float("nan")}, "damaged"),
        ({"lipschitz_upper": -1.0}, "damaged"),
        ({"reference_error": {"constant": 0, "slope": 0}}, "damaged"),
        ({"errors": error_bounds(0)}, "do not belong together"),
        ({"errors": error_bounds(-1e-9)}, "damaged"),
        ({"errors": error_bounds(float("nan"))}, "damaged"),
        ({"errors": error_bounds(1, "float64 any-order")}, "damaged"),
        ({"errors": error_bounds(1, "float32 blocked")}, "damaged"),
        ({"errors": {}}, "damaged"),
        ({"arithmetic": "float64"}, "damaged"),
        ({"accumulation": "any-order"}, "damaged"),
        ({"accumulation": "sorted"}, "damaged"),
        ({"guarantee": "everything"}, "damaged"),
        ({"network": {"image_size": 8}}, "do not belong together"),
        ({"sha256": "0"}, "do not belong together"),
        ({"lipschitz_upper": 1e-6}, "do not belong together"),
        ({"classes": ["bee", "ant", "cow"]}, "do not belong together"),
        ({"extra": 1}, "damaged"),
    ],
    ids=str,
)
def test_manifests_that_do_not_fit_are_refused(
    engine: Path, changes: dict[str, object], message: str
) -> None:
    changed_manifest(engine, **changes)
    with pytest.raises(ModelError, match=message):
        read_onnx(engine)


def test_a_changed_weight_is_refused(engine: Path) -> None:
    model = onnx.load(engine)
    tensor = next(t for t in model.graph.initializer if t.name == "head.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nextafter(values[0, 0], np.float32(9))
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, engine)
    with pytest.raises(ModelError, match="do not belong together"):
        read_onnx(engine)


def test_foreign_damaged_and_missing_files_are_refused(tmp_path: Path, engine: Path) -> None:
    data = engine.read_bytes()
    foreign = onnx.load(engine)
    del foreign.metadata_props[:]
    cases = {
        "missing.onnx": (None, "no such file"),
        "empty.onnx": (b"", "an empty file"),
        "text.onnx": (b"hello, this is text", "not an engine"),
        "cut.onnx": (data[: len(data) // 2], "not an engine"),
        "foreign.onnx": (foreign.SerializeToString(), "not one of lipdeploy"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            read_onnx(path)


def test_weights_in_other_files_are_never_read(engine: Path) -> None:
    model = onnx.load(engine)
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"
    engine.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="keeps weights in other files"):
        read_onnx(engine)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is CUDA here"
)
def test_cuda_is_refused_where_there_is_none(engine: Path) -> None:
    with pytest.raises(EngineError, match="--device cuda"):
        OnnxRuntime(engine.read_bytes(), "cuda")


def test_an_export_says_where_it_is_and_times_each_stage(tmp_path: Path) -> None:
    card = ModelCard(("a", "b", "c"), "random", "", 0)
    model = TrainedModel(make_network(), card, torch.zeros(1, 3, 8, 8))
    save_model(model, tmp_path / "model.pt")
    heard: list[str] = []
    output = tmp_path / "model.onnx"
    exported = export_model(tmp_path / "model.pt", output, ExportOptions(), heard.append)
    stages = ["load", "plan", "exponentials", "freeze", "prove", "emit", "check", "write"]
    assert list(exported.seconds) == [stage for stage in heard if ":" not in stage] == stages
    total = len(layer_shapes(model.network))
    steps = [f"exponentials: layer {k} of {total}" for k in range(2, total + 1)]
    assert [stage for stage in heard if ":" in stage] == steps
    assert all(seconds >= 0 for seconds in exported.seconds.values())


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
