"""The graph run by torch: the same numbers as ONNX Runtime's, the proven bounds, and its errors."""

import functools
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import make_network, plan_of, random_pixels
from onnx import helper

from lipdeploy.arithmetic import FLOAT32
from lipdeploy.artifact import Engine, make_manifest
from lipdeploy.certificate import Answers, Certifier
from lipdeploy.engine_error import distances_upper
from lipdeploy.errors import EngineError
from lipdeploy.exporters.freeze import freeze
from lipdeploy.exporters.onnx_file import onnx_bytes, parse_onnx, read_onnx, served_bytes
from lipdeploy.exporters.onnx_graph import OPSET
from lipdeploy.exporters.onnx_probe import keeps_precision
from lipdeploy.exporters.plan import FormChoice
from lipdeploy.rounding import ACCUMULATIONS, Accumulation, Rounding
from lipdeploy.runtimes import torch_nodes
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.runtimes.torch import TorchRuntime

OUTPUTS = ["features", "logits", "radius"]
CASES: dict[str, tuple[int, str, FormChoice, str]] = {
    "auto": (8, "circular", "auto", ""),
    "spectral, even": (8, "circular", "spectral", ""),
    "spectral, odd": (9, "circular", "spectral", ""),
    "spectral, two copies": (8, "circular", "spectral", "x2"),
    "spectral, rows, even": (8, "circular", "spectral", "rows"),
    "spectral, rows, odd": (9, "circular", "spectral", "rows"),
    "spectral, vectors": (8, "circular", "spectral", "vectors"),
    "spectral, vectors of two copies": (9, "circular", "spectral", "x2 vectors"),
    "fused, even": (8, "circular", "fused", ""),
    "fused, odd": (9, "circular", "fused", ""),
    "fused, two copies": (9, "circular", "fused", "x2"),
    "fused, rows": (8, "circular", "fused", "rows"),
    "fused, vectors, odd": (9, "circular", "fused", "vectors"),
    "dense": (6, "circular", "dense", ""),
    "dense, zero": (8, "zero", "dense", ""),
    "taylor": (9, "zero", "taylor", ""),
    "tiled": (37, "circular", "tiled", ""),
}
"""Image size, padding, form, how blocks are multiplied."""


@functools.cache
def make_engine(
    case: str = "auto",
    head: str = "lln",
    accumulation: Accumulation = "blocked",
    weights: str = "float16",
) -> Engine:
    """A small random network as an engine, read back from its bytes."""
    size, padding, form, how = CASES[case]
    network = make_network(1, size, padding=padding, head=head)
    rounding = Rounding.of_graph(FLOAT32, accumulation)
    stored = freeze(network, plan=plan_of(network, form, how)).stored_as(weights)
    names, resized = ("ant", "bee", "cow"), {"size": size}
    manifest = make_manifest(stored, names, resized, {}, {"lipdeploy": "test"}, rounding)
    return parse_onnx(onnx_bytes(stored, manifest), "test")


def inputs_of(count: int, size: int) -> np.ndarray:
    """Whole numbers, fractions and the corners of the range, shape (count, 3, n, n)."""
    pixels = random_pixels(count, size, seed=count)
    pixels[1::4] = np.random.default_rng(0).uniform(0, 255, pixels[1::4].shape)
    pixels[2::4] = 255 * (np.indices(pixels.shape[1:]).sum(axis=0) % 2)
    pixels[3::8] = 0
    return pixels.astype(np.float32)


def far_inputs(engine: Engine) -> np.ndarray:
    """Beyond the range of images, within the distance up to which the bounds hold."""
    size = engine.network.image_size
    signs = np.sign(np.random.default_rng(0).normal(size=(4, 3, size, size)))
    pixels: np.ndarray = (signs * np.array([1e-30, 1.0, 500, 1100])[:, None, None, None]).astype(
        np.float32
    )
    return pixels


def check_parity(engine: Engine, counts: tuple[int, ...]) -> None:
    """Against ONNX Runtime, against the reference in float64, and against the proven bounds."""
    network, errors = engine.network, engine.manifest.engine_errors
    served = served_bytes(engine)
    single, double = (TorchRuntime(served, "cpu", dtype) for dtype in ("float32", "float64"))
    inference = OnnxRuntime(served, "cpu")
    for count in counts:
        pixels = inputs_of(count, network.image_size)
        features, logits, radius = single.outputs(OUTPUTS, {"pixels": pixels})
        expected = inference.outputs(OUTPUTS, {"pixels": pixels})
        assert [a.dtype for a in (features, logits, radius)] == [np.float32] * 3
        scale = np.abs(expected[0]).max()
        for found, other in zip((features, logits, radius), expected, strict=True):
            np.testing.assert_allclose(found, other, rtol=2e-5, atol=2e-6 * scale)
        exact = network.features(pixels.astype(np.float64))
        found = double.run(pixels)
        for value, reference in zip(found, (exact, network.head.logits(exact)), strict=True):
            np.testing.assert_allclose(
                value, reference, rtol=0, atol=1e-10 * np.abs(reference).max()
            )
        distances = distances_upper(pixels.astype(np.float64), network.centre)
        assert np.all(np.linalg.norm(features - exact, axis=1) <= errors.features(distances))
        answers = Answers(pixels.astype(np.float64), features.astype(np.float64), logits.argmax(1))
        host = Certifier(network, engine.manifest).program_radii(answers, errors) / 255
        assert np.all(radius <= host)


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "tiled"])
def test_torch_computes_what_onnx_runtime_does(
    case: str, head: str, accumulation: Accumulation
) -> None:
    check_parity(make_engine(case, head, accumulation), (1, 3))


def test_torch_computes_what_onnx_runtime_does_on_tiles() -> None:
    check_parity(make_engine("tiled"), (1, 3))


@pytest.mark.parametrize("weights", ["float16", "float32"])
def test_batches_of_64_are_as_good(weights: str) -> None:
    check_parity(make_engine("auto", "mlp", weights=weights), (64,))


def test_the_bundled_model_is_the_same(source: Path) -> None:
    check_parity(read_onnx(source / "samples" / "model.onnx"), (1, 3, 64))


@pytest.mark.parametrize("case", [case for case in CASES if case != "tiled"])
def test_the_file_as_it_is_stored_gives_the_same_as_the_prepared_one(case: str) -> None:
    engine, pixels = make_engine(case, "mlp"), inputs_of(3, CASES[case][0])
    stored, prepared = (
        TorchRuntime(data, "cpu").outputs(OUTPUTS, {"pixels": pixels})
        for data in (engine.data, served_bytes(engine))
    )
    for found, expected in zip(stored, prepared, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["auto", "spectral, odd", "fused, odd", "dense, zero"])
def test_the_bound_holds_far_from_any_image(case: str) -> None:
    engine = make_engine(case)
    pixels = far_inputs(engine)
    features, _ = TorchRuntime(engine.prepared, "cpu").run(pixels)
    exact = engine.network.features(pixels.astype(np.float64))
    distances = distances_upper(pixels.astype(np.float64), engine.network.centre)
    bound = engine.manifest.engine_errors.features(distances)
    assert np.all(np.linalg.norm(features - exact, axis=1) <= bound)
    assert np.all(bound < 1e-2 * np.linalg.norm(exact, axis=1).max())


def test_pixels_that_are_no_numbers_get_radius_0() -> None:
    engine = make_engine()
    pixels = inputs_of(3, 8)
    pixels[0, 0, 0, 0], pixels[1, 0, 0, 0] = np.nan, np.inf
    runtime = TorchRuntime(served_bytes(engine), "cpu")
    (radius,) = runtime.outputs(["radius"], {"pixels": pixels})
    assert radius[0] == radius[1] == 0
    assert np.isfinite(radius[2])


def test_softplus_is_exact_to_a_few_roundings_everywhere() -> None:
    x = np.concatenate([np.linspace(-100, 100, 4001), [-1e30, 1e30, 0.0]])
    found = torch_nodes.OPERATIONS["Softplus"](torch.tensor(x)).numpy()
    expected = np.logaddexp(x, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-15, atol=0)


def test_products_are_as_precise_as_float32_and_no_more_is_claimed() -> None:
    engine = make_engine("taylor")
    runtime = TorchRuntime(engine.prepared, "cpu")
    assert keeps_precision(runtime, engine.prepared, 3)
    assert runtime.runs_graph
    assert runtime.arithmetic == "float32"
    assert runtime.description == f"torch {torch.__version__}, float32, cpu"
    assert TorchRuntime(engine.prepared, "cpu", "float64").arithmetic == "float64"


@pytest.fixture
def precisions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """What float32 products are allowed in every matrix product that an engine runs."""
    seen: list[tuple[str, str]] = []
    product = torch_nodes.OPERATIONS["MatMul"]

    def watched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(settings())
        return product(a, b)

    monkeypatch.setitem(torch_nodes.OPERATIONS, "MatMul", watched)
    yield seen
    torch.set_float32_matmul_precision("highest")
    for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
        backend.fp32_precision = "none"


def settings() -> tuple[str, str]:
    """Of the process, for float32 products on a GPU and on a CPU."""
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_shorter_products_are_off_in_the_engine_and_stay_on_for_others(
    precisions: list[tuple[str, str]], precision: str
) -> None:
    torch.set_float32_matmul_precision(precision)
    before = settings()
    assert before[0] == "tf32"
    assert before[1] not in ("ieee", "none")
    runtime = TorchRuntime(make_engine().prepared, "cpu")
    threads = [threading.Thread(target=runtime.run, args=(inputs_of(3, 8),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(precisions) > 40
    assert set(precisions) == {("ieee", "ieee")}
    assert settings() == before
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == precision


def test_a_setting_of_all_products_stays_one_of_all(precisions: list[tuple[str, str]]) -> None:
    torch.backends.fp32_precision = "tf32"
    try:
        TorchRuntime(make_engine().prepared, "cpu").run(inputs_of(3, 8))
        assert set(precisions) == {("ieee", "ieee")}
        assert settings() == ("tf32", "tf32")
    finally:
        torch.backends.fp32_precision = "none"
    assert settings() == ("none", "none")


@pytest.mark.usefixtures("precisions")
def test_settings_are_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such kernel\nand a long trace")

    monkeypatch.setitem(torch_nodes.OPERATIONS, "Max", broken)
    torch.set_float32_matmul_precision("high")
    runtime = TorchRuntime(make_engine().prepared, "cpu")
    with pytest.raises(EngineError, match=r"^the engine failed \(no such kernel\); try a smaller"):
        runtime.run(inputs_of(1, 8))
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_autocast_and_gradients_of_the_caller_change_nothing() -> None:
    runtime, pixels = TorchRuntime(make_engine().prepared, "cpu"), inputs_of(3, 8)
    expected = runtime.run(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        found = runtime.run(pixels)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


def watch_operations(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[int]]:
    """Types of the nodes that run, and how many of their results are held when each begins."""
    kinds: list[str] = []
    held: list[int] = []
    results: list[weakref.ref[torch.Tensor]] = []

    def watched(kind: str, operation: torch_nodes.Operation) -> torch_nodes.Operation:
        @functools.wraps(operation)
        def run(*arguments: object, **attributes: object) -> object:
            kinds.append(kind)
            results[:] = [result for result in results if result() is not None]
            held.append(len(results))
            result = operation(*arguments, **attributes)
            parts = result if isinstance(result, tuple) else (result,)
            results.extend(weakref.ref(part) for part in parts)
            return result

        return run

    for kind, operation in list(torch_nodes.OPERATIONS.items()):
        monkeypatch.setitem(torch_nodes.OPERATIONS, kind, watched(kind, operation))
    return kinds, held


def test_only_what_an_output_needs_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds, _ = watch_operations(monkeypatch)
    served = served_bytes(make_engine(head="mlp"))
    runtime, pixels = TorchRuntime(served, "cpu"), inputs_of(3, 8)
    runtime.outputs(["features"], {"pixels": pixels})
    assert not {"Softplus", "Sigmoid", "ArgMax", "Sqrt"} & set(kinds)
    runtime.outputs(["logits"], {"pixels": pixels})
    assert "Softplus" in kinds
    assert not {"Sigmoid", "ArgMax", "Sqrt"} & set(kinds)
    kinds.clear()
    runtime.outputs(["radius"], {"pixels": pixels})
    nodes = onnx.load_model_from_string(served).graph.node
    assert sorted(kinds) == sorted(node.op_type for node in nodes)


def test_values_are_freed_when_nothing_needs_them_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds, held = watch_operations(monkeypatch)
    runtime = TorchRuntime(make_engine("taylor").prepared, "cpu")
    runtime.run(inputs_of(3, 9))
    # At most the products of all 9 taps of a kernel, in pieces, beside a few more.
    assert len(kinds) > 500
    assert max(held) < 30


def changed(engine: Engine, kind: str, **changes: object) -> bytes:
    """The prepared graph with the first node of a type changed."""
    model = onnx.load_model_from_string(engine.prepared)
    node = next(node for node in model.graph.node if node.op_type == kind)
    node.op_type = str(changes.pop("op_type", kind))
    node.domain = str(changes.pop("domain", ""))
    node.attribute.extend(helper.make_attribute(name, value) for name, value in changes.items())
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"op_type": "Erf"},
            "node .* of type Erf is unknown to the torch runtime; use --runtime",
        ),
        ({"domain": "com.example"}, "type Transpose is unknown"),
        ({"axis": 1}, "inputs or attributes that the torch runtime does not know .*axis"),
        ({"op_type": "MatMul"}, "inputs or attributes"),
    ],
    ids=str,
)
def test_nodes_that_are_not_known_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        TorchRuntime(changed(make_engine(), "Transpose", **changes), "cpu")


def test_other_operators_and_bytes_are_refused() -> None:
    model = onnx.load_model_from_string(make_engine().prepared)
    model.opset_import[0].version = OPSET + 1
    with pytest.raises(EngineError, match=f"expected {OPSET}"):
        TorchRuntime(model.SerializeToString(), "cpu")
    with pytest.raises(EngineError, match="no ONNX model"):
        TorchRuntime(b"hello, this is text", "cpu")


def test_wrong_inputs_and_outputs_are_named() -> None:
    runtime, pixels = TorchRuntime(make_engine().prepared, "cpu"), inputs_of(4, 8)
    with pytest.raises(EngineError, match=r"no output 'label'; expected features, logits$"):
        runtime.outputs(["label"], {"pixels": pixels})
    # As many numbers as two images of the right size.
    for wrong in (
        {"pixels": pixels.reshape(2, 3, 8, 16)},
        {"x": pixels},
        {},
        {"pixels": pixels[0]},
    ):
        with pytest.raises(EngineError, match=r"expected \{'pixels': \(0, 3, 8, 8\)\}"):
            runtime.outputs(["features"], wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_is_refused_where_there_is_none() -> None:
    data = make_engine().prepared
    with pytest.raises(EngineError, match=r"--device cuda: torch \d.*; use --device cpu, or "):
        TorchRuntime(data, "cuda")
    assert TorchRuntime(data).description.startswith(f"torch {torch.__version__}, float32, cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")
@pytest.mark.parametrize("case", list(CASES))
def test_cuda_computes_the_same_within_the_bound(case: str) -> None:
    engine = make_engine(case, "mlp")
    pixels = inputs_of(64, engine.network.image_size)
    torch.set_float32_matmul_precision("high")
    try:
        features, _ = TorchRuntime(engine.prepared, "cuda").run(pixels)
    finally:
        torch.set_float32_matmul_precision("highest")
    exact = engine.network.features(pixels.astype(np.float64))
    distances = distances_upper(pixels.astype(np.float64), engine.network.centre)
    bound = engine.manifest.engine_errors.features(distances)
    assert np.all(np.linalg.norm(features - exact, axis=1) <= bound)


def test_without_torch_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_engine().prepared
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineError, match="torch is not installed; pip install"):
        TorchRuntime(data, "cpu")


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from lipdeploy.errors import EngineError
from lipdeploy.runtimes.torch import TorchRuntime

runtime = TorchRuntime(Path(sys.argv[1]).read_bytes(), "cpu")
runtime.run(np.zeros((1, 3, 8, 8), dtype=np.float32))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), resource.RLIM_INFINITY))
try:
    runtime.run(np.zeros((300_000, 3, 8, 8), dtype=np.float32))
except EngineError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_too_large_a_batch_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "engine.onnx").write_bytes(make_engine().prepared)
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path / "engine.onnx")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("the engine failed (")
    assert done.stdout.endswith("); try a smaller --batch\n")
    assert "alloc" in done.stdout
