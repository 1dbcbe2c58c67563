"""Engines whose linear layers compute in tf32, float16 or bfloat16."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import make_network, random_pixels
from onnx import TensorProto

from lipdeploy.arithmetic import ARITHMETICS, FLOAT16, FLOAT32
from lipdeploy.artifact import Engine, make_manifest
from lipdeploy.decimals import upper
from lipdeploy.engine_error import distances_upper
from lipdeploy.errors import BoundError, UsageError
from lipdeploy.exporters.engine_file import read_engine
from lipdeploy.exporters.export import export_model
from lipdeploy.exporters.freeze import freeze
from lipdeploy.exporters.onnx_file import onnx_bytes, parse_onnx, served_bytes
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.exporters.precision import PrecisionCost
from lipdeploy.predictor import Predictor
from lipdeploy.report.export import precision_note
from lipdeploy.rounding import Product, Rounding
from lipdeploy.runtimes.choice import RuntimeChoice, open_runtime
from lipdeploy.runtimes.cuda import find_gpu
from lipdeploy.runtimes.torch import TorchRuntime
from lipdeploy.training.checkpoint import ModelCard, TrainedModel, save_model

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
    runtime = TorchRuntime(served_bytes(engine), "cpu", arithmetic=precision)
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
    assert "guarantee  network, float16: each answer is compared" in out
    assert "program" not in out
    told = err.splitlines()
    assert re.fullmatch(
        r"float16 instead of float32, on onnxruntime .*, which imitates it:", told[0]
    )
    assert re.fullmatch(r"  radius  [\d.]+/255 on average instead of [\d.]+/255, .*", told[1])
    assert re.fullmatch(r"  speed   [\d.]+ times that of float32: \d+ images a second .*", told[2])
    with Predictor(path) as predictor:
        assert predictor.guarantee == "network"
        (half,) = predictor(samples / "cat-0000.jpg")
        with pytest.raises(UsageError, match="no bounds for onnxruntime"):
            Predictor(path, guarantee="program")
    with Predictor(samples / "model.onnx", guarantee="network") as predictor:
        (full,) = predictor(samples / "cat-0000.jpg")
    assert half.label == full.label
    assert 0.8 * full.radius < half.radius < full.radius


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model file with four images."""
    examples = torch.from_numpy(random_pixels(4, 8)).float()
    card = ModelCard(("a", "b", "c"), "none", "test", 0)
    path = tmp_path / "model.pt"
    save_model(TrainedModel(make_network(width=8), card, examples), path)
    return path


def told(model: Path, output: Path, options: ExportOptions) -> PrecisionCost:
    """What an export tells of its precision, when nothing is written yet."""
    heard: list[PrecisionCost] = []

    def listen(cost: PrecisionCost) -> None:
        assert not list(output.parent.glob(f"{output.name}*"))
        heard.append(cost)

    export_model(model, output, options, tell=listen)
    (cost,) = heard
    return cost


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_radius_and_speed_are_those_of_the_engines_and_told_before_writing(
    model: Path, tmp_path: Path, precision: str
) -> None:
    path = tmp_path / "lower.onnx"
    cost = told(model, path, ExportOptions(precision=precision, batch=8))
    export_model(model, tmp_path / "float32.onnx", ExportOptions())
    images = [image.astype(np.uint8).transpose(1, 2, 0) for image in random_pixels(4, 8)]
    runtime: RuntimeChoice = "torch" if precision == "bfloat16" else "auto"
    for engine, found in ((path, cost.radius_255), (tmp_path / "float32.onnx", cost.float32_255)):
        with Predictor(engine, guarantee="network", runtime=runtime) as predictor:
            radii = [answer.certificate.radius_255 for answer in predictor(images)]
        assert found == pytest.approx(np.mean(radii), rel=1e-3)
    assert cost.images == 4
    assert 0 < cost.radius_255 < cost.float32_255
    assert cost.float32_255 - cost.radius_255 < cost.at_most_255
    assert cost.speed.batch == 8
    assert cost.speed.gain == cost.speed.lower / cost.speed.float32 > 0


def test_tf32_is_not_measured_where_nothing_computes_in_it(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "tf32.onnx"
    cost = told(model, path, ExportOptions(precision="tf32"))
    if open_runtime(read_engine(path)).device == "cuda":
        pytest.skip("there is a GPU")
    assert (cost.radius_255, cost.speed) == (None, None)
    assert cost.reason == "no CPU computes in tf32, and no GPU can be used here"
    assert cost.at_most_255 > 0
    shown = "\n".join(precision_note(cost))
    assert f"radius  rounding of the features takes at most {upper(cost.at_most_255, 2)}" in shown
    assert f"speed   not measured: {cost.reason}" in shown


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="pip install 'lipdeploy[trt-rtx]'")
def test_a_tensorrt_engine_without_a_gpu_has_no_speed(model: Path, tmp_path: Path) -> None:
    if find_gpu() is not None:
        pytest.skip("there is a GPU")
    options = ExportOptions(engine="trt", precision="float16", batch=8)
    cost = told(model, tmp_path / "model.engine", options)
    assert cost.speed is None
    assert cost.reason.endswith("runs on NVIDIA GPUs, and CUDA finds none here")
    assert 0 < cost.radius_255 < cost.float32_255
    assert cost.is_imitated


def test_float32_has_nothing_to_compare_itself_with(model: Path, tmp_path: Path) -> None:
    heard: list[PrecisionCost] = []
    exported = export_model(model, tmp_path / "m.onnx", ExportOptions(), tell=heard.append)
    assert not heard
    assert "compare" not in exported.seconds


def test_bfloat16_is_exported_and_never_certifies_the_program(
    model: Path, tmp_path: Path, run_cli: Cli
) -> None:
    path = tmp_path / "brain.onnx"
    status, out, err = run_cli("export", model, "--precision", "bfloat16", "-o", path)
    assert status == 0, err
    assert "torch" in out + err
    images = list(random_pixels(8, 8).astype(np.uint8).transpose(0, 2, 3, 1))
    with Predictor(path, runtime="torch") as predictor:
        assert predictor.guarantee == "network"
        found = list(predictor(images))
    with Predictor(path, runtime="numpy") as predictor:
        exact = list(predictor(images))
    certified = [(a.label, b.label) for a, b in zip(found, exact, strict=True) if a.radius > 0]
    assert len(certified) >= 4
    assert all(label == other for label, other in certified)
    assert all(a.radius <= b.radius for a, b in zip(found, exact, strict=True))


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
