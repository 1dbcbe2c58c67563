"""Engines whose linear layers compute in tf32, float16 or bfloat16."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import make_network, random_pixels
from onnx import TensorProto

from lipdeploy.artifact import Engine, make_manifest
from lipdeploy.engine_error import distances_upper
from lipdeploy.errors import BoundError, UsageError
from lipdeploy.exporters.export import ExportOptions
from lipdeploy.exporters.freeze import freeze
from lipdeploy.exporters.onnx_file import onnx_bytes, parse_onnx
from lipdeploy.predictor import Predictor
from lipdeploy.rounding import ARITHMETICS, FLOAT16, FLOAT32, Product, Rounding
from lipdeploy.runtimes.choice import RuntimeChoice, open_runtime
from lipdeploy.runtimes.torch import TorchRuntime

Cli = Callable[..., tuple[int, str, str]]
LOWER = ("tf32", "float16", "bfloat16")


def engine_in(precision: str, form: str = "auto", **shape: object) -> Engine:
    """A small engine."""
    network = freeze(make_network(**shape), form).stored_as("float16")
    network = network.rounded_to(ARITHMETICS[precision])
    rounding = Rounding.of_graph(ARITHMETICS[precision], "blocked")
    preprocessing = {"size": network.image_size}
    classes = tuple(map(str, range(network.head.classes)))
    manifest = make_manifest(network, classes, preprocessing, {}, {}, rounding)
    return parse_onnx(onnx_bytes(network, manifest), precision)


@pytest.mark.parametrize("precision", LOWER)
def test_rounded_weights_are_operands_of_the_arithmetic(precision: str) -> None:
    arithmetic = ARITHMETICS[precision]
    network = freeze(make_network(width=8)).stored_as("float32").rounded_to(arithmetic)
    for layer in network.linear():
        for array in (*layer.operator.weights().values(), layer.bias):
            assert arithmetic.holds(array)
            assert array.dtype == np.float32


@pytest.mark.parametrize("precision", LOWER)
def test_the_nearest_operand_is_the_nearest(precision: str) -> None:
    import ml_dtypes

    arithmetic = ARITHMETICS[precision]
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    rounded = arithmetic.nearest(values)
    assert np.abs(rounded - values).max() <= 2.0**-arithmetic.operand_bits * np.abs(values).max()
    types = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    if precision in types:
        assert np.array_equal(rounded, values.astype(types[precision]).astype(np.float32))
    with pytest.raises(BoundError, match="too large for float16"):
        FLOAT16.nearest(np.array([1e5], dtype=np.float32))


@pytest.mark.parametrize("head", ["lln", "mlp"])
@pytest.mark.parametrize("form", ["spectral", "fused", "dense"])
@pytest.mark.parametrize(
    ("precision", "runtime"),
    [
        ("tf32", "onnxruntime"),
        ("float16", "onnxruntime"),
        ("float16", "torch"),
        ("bfloat16", "torch"),
    ],
)
def test_the_engine_is_within_its_bound(
    precision: str, runtime: RuntimeChoice, form: str, head: str
) -> None:
    engine = engine_in(precision, form, head=head)
    pixels = random_pixels(6, engine.network.image_size)
    features, _ = open_runtime(engine, runtime, "cpu").run(pixels.astype(np.float32))
    errors = np.linalg.norm(features - engine.network.features(pixels), axis=1)
    bounds = engine.manifest.engine_errors.features(distances_upper(pixels, engine.network.centre))
    assert np.all(errors <= bounds)
    assert np.all(errors > 0)
    finer = engine_in("float32", form, head=head).manifest.engine_errors.features
    assert engine.manifest.engine_errors.features.slope > 100 * finer.slope


@pytest.mark.parametrize(
    ("precision", "kind"), [("float16", TensorProto.FLOAT16), ("bfloat16", TensorProto.BFLOAT16)]
)
def test_products_of_the_body_are_in_that_type_and_the_head_is_not(
    precision: str, kind: int
) -> None:
    engine = engine_in(precision)
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(engine.prepared))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    constants = {t.name for t in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    body = [n for n in products if any(name.startswith("layer") for name in n.input)]
    assert body
    assert all(types[name] == kind for node in body for name in node.input)
    head = [n for n in products if any(name.startswith("head") for name in n.input)]
    assert head
    assert all(types[name] == TensorProto.FLOAT for node in head for name in node.input)
    assert constants


def test_tf32_weights_are_exact_and_the_graph_is_in_float32() -> None:
    engine = engine_in("tf32")
    model = onnx.load_model_from_string(engine.prepared)
    assert not [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    layers = [t for t in model.graph.initializer if t.name.startswith("layer")]
    assert all(ARITHMETICS["tf32"].holds(onnx.numpy_helper.to_array(t)) for t in layers)


def block_means(levels: int, mean: int) -> list[int]:
    """Means of blocks, in units of 2^-14, such that every sum of two is a tie in float16."""
    if levels == 0:
        return [mean]
    parts = (mean, mean + 1) if mean % 2 == 0 else (mean - 1, mean + 1)
    return [m for part in parts for m in block_means(levels - 1, part)]


@pytest.mark.parametrize(("levels", "scale"), [(6, 64.0), (6, 512.0), (4, 512.0), (2, 1024.0)])
def test_results_of_blocks_are_stored_in_half_precision_too(levels: int, scale: float) -> None:
    """Sums in float32 in each block, what comes out of it and of every addition in float16."""
    weights = []
    for mean in block_means(levels, 1040):
        extra = (mean - 1024) * 16 + 7
        block = np.full(16, 1 / 16 + extra // 16 * 2.0**-14)
        block[: extra % 16] += 2.0**-14
        weights.append(block)
    w = np.concatenate(weights).astype(np.float16)
    assert np.array_equal(w, np.concatenate(weights))
    x = np.full(len(w), scale, dtype=np.float16)
    products = (w.astype(np.float32) * x.astype(np.float32)).reshape(-1, 16)
    parts = list(products.sum(axis=1, dtype=np.float32).astype(np.float16))
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [np.float16(np.float32(a) + np.float32(b)) for a, b in pairs]
    exact = float(np.sum(w.astype(np.float64) * x.astype(np.float64)))
    step = Rounding.of_graph(FLOAT16, "blocked").product(Product(w[:, None], 1))
    bound = step.rounding_upper * float(np.linalg.norm(x.astype(np.float64))) + step.underflow
    assert bound / 3 <= abs(exact - float(parts[0])) <= bound


def test_weights_that_an_engine_may_flush_are_refused() -> None:
    weights = np.full((4, 1), 2.0**-15, dtype=np.float16)
    with pytest.raises(BoundError, match="no normal number in float16"):
        Rounding(FLOAT16).product(Product(weights, 1))
    assert Rounding(FLOAT32).product(Product(weights, 1)).rounding_upper > 0


@pytest.mark.parametrize("precision", LOWER)
def test_the_graph_gives_no_radius_where_program_is_not_offered(precision: str) -> None:
    engine = engine_in(precision)
    runtime = TorchRuntime(engine.prepared, "cpu", arithmetic=precision)
    pixels = random_pixels(4, engine.network.image_size).astype(np.float32)
    logits, radius = runtime.outputs(["logits", "radius"], {"pixels": pixels})
    assert np.ptp(logits) > 0
    assert not radius.any()
    assert engine.manifest.guarantee == "network"


def test_half_precision_on_a_cpu_certifies_the_network_and_not_the_program() -> None:
    engine = engine_in("float16")
    runtime = open_runtime(engine, "onnxruntime", "cpu")
    assert not runtime.runs_graph
    assert runtime.arithmetic == "float16"


def test_a_command_exports_and_predicts_in_half_precision(
    source: Path, tmp_path: Path, run_cli: Cli
) -> None:
    path = tmp_path / "half.onnx"
    samples = source / "samples"
    status, out, err = run_cli("export", samples / "model.pt", "--precision", "float16", "-o", path)
    assert status == 0, err
    assert "network, float16" in out + err
    with Predictor(path) as predictor:
        assert predictor.guarantee == "network"
        (half,) = predictor(samples / "cat-0000.jpg")
        with pytest.raises(UsageError, match="no bounds for onnxruntime"):
            Predictor(path, guarantee="program")
    with Predictor(samples / "model.onnx", guarantee="network") as predictor:
        (full,) = predictor(samples / "cat-0000.jpg")
    assert half.label == full.label
    assert 0.8 * full.radius < half.radius < full.radius


def test_bfloat16_is_exported_and_never_certifies_the_program(
    source: Path, tmp_path: Path, run_cli: Cli
) -> None:
    path = tmp_path / "brain.onnx"
    status, out, err = run_cli(
        "export", source / "samples" / "model.pt", "--precision", "bfloat16", "-o", path
    )
    assert status == 0, err
    assert "torch" in out + err
    with Predictor(path, runtime="torch") as predictor:
        assert predictor.guarantee == "network"
        (found,) = predictor(source / "samples" / "cat-0000.jpg")
    assert found.label == "cat"
    assert found.radius > 0


def test_what_has_no_such_precision_says_so() -> None:
    with pytest.raises(UsageError, match="did you mean bfloat16"):
        ExportOptions(precision="bfloat6")
    with pytest.raises(UsageError, match="held to float32"):
        ExportOptions(engine="openvino", precision="float16")
    with pytest.raises(UsageError, match="nothing is known of the order of sums"):
        ExportOptions(precision="tf32", accumulation="same-order")
    with pytest.raises(UsageError, match="no radius is proven for a server"):
        ExportOptions(precision="float16", triton=Path("models"))
    engine = engine_in("float16")
    with pytest.raises(UsageError, match="OpenVINO is held to float32"):
        open_runtime(engine, "openvino")


def test_float32_is_a_fixed_point() -> None:
    values = np.random.default_rng(0).normal(size=64).astype(np.float32)
    assert np.array_equal(FLOAT32.nearest(values), values)
