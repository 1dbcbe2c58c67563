"""Engines of TensorRT: what is built, what is refused, and running one where there is a GPU."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import make_network, random_pixels
from onnx import TensorProto, helper, numpy_helper

from lipdeploy.arithmetic import ARITHMETICS, FLOAT32
from lipdeploy.artifact import make_manifest
from lipdeploy.errors import EngineError, ExportError, LipdeployError, UsageError
from lipdeploy.exporters import tensorrt_builder
from lipdeploy.exporters.freeze import freeze, layer_shapes
from lipdeploy.exporters.onnx import build_model
from lipdeploy.exporters.onnx_graph import IR_VERSION, OPSET
from lipdeploy.exporters.plan import FormChoice, candidates
from lipdeploy.exporters.tensorrt import Profile, TensorRtBuild, build_tensorrt
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.rounding import Accumulation, Rounding
from lipdeploy.runtimes.cuda import Gpu, checked, cuda_api, find_gpu
from lipdeploy.runtimes.tensorrt import Requirements, TensorRtRuntime, padded, pieces

HAS_CUDA_PYTHON = find_spec("cuda") is not None
GPU = find_gpu() if HAS_CUDA_PYTHON else None
HAS_BUILDER = HAS_CUDA_PYTHON and (
    find_spec("tensorrt") is not None if GPU else find_spec("tensorrt_rtx") is not None
)
builds = pytest.mark.skipif(
    not HAS_BUILDER, reason="nothing here builds engines; pip install 'lipdeploy[trt-rtx]'"
)
runs = pytest.mark.skipif(
    not (HAS_BUILDER and GPU), reason="runs a TensorRT engine, which needs an NVIDIA GPU"
)
asks_cuda = pytest.mark.skipif(
    not HAS_CUDA_PYTHON, reason="asks CUDA for GPUs; pip install cuda-python"
)

PROFILE = Profile(2, 4, 8)
REBUILD = "lipdeploy export model.pt --engine trt"
ONNX = Path("model.engine.onnx")
ADA = Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0")
SETTINGS = {
    "package": "tensorrt",
    "version": "10.13.3.9",
    "version_compatible": False,
    "hardware": "same-gpu",
    "precision": "float32",
    "gpu": asdict(ADA),
}


def frozen(
    size: int, form: FormChoice, head: str = "lln", padding: str = "circular", copies: int = 1
) -> FrozenNetwork:
    """A small network, every layer in a form and with copies of its blocks, where it can be.

    Only the first layer is a series: each has hundreds of nodes.
    """
    network = make_network(0, size, padding=padding, head=head)
    first, *others = layer_shapes(network)
    rest: FormChoice = "dense" if form == "taylor" else form
    plan = [
        next((c for c in options if c.copies == copies), options[0])
        for options in (candidates(first, form), *(candidates(shape, rest) for shape in others))
    ]
    return freeze(network, plan=plan).stored_as("float16")


def prepared(network: FrozenNetwork, accumulation: Accumulation = "blocked") -> bytes:
    classes = tuple(f"class {index}" for index in range(network.head.classes))
    rounding = Rounding.of_graph(FLOAT32, accumulation)
    manifest = make_manifest(network, classes, {"size": network.image_size}, {}, {}, rounding)
    return bytes(build_model(network, manifest, prepared=True).SerializeToString())


@pytest.fixture(scope="module")
def data() -> bytes:
    return prepared(frozen(6, "fused"))


@pytest.fixture(scope="module")
def build(data: bytes) -> TensorRtBuild:
    return build_tensorrt(data, PROFILE)


def message(kind: type[LipdeployError], call: Callable[[], object]) -> str:
    """What the call is refused with, one line of readable length."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert 20 < len(text) < 500
    return text


@builds
@pytest.mark.parametrize(
    ("size", "form", "head", "padding", "copies", "accumulation"),
    [
        (8, "auto", "lln", "circular", 1, "blocked"),
        (9, "spectral", "mlp", "circular", 1, "same-order"),
        (6, "spectral", "linear", "circular", 2, "any-order"),
        (7, "fused", "lln", "circular", 1, "any-order"),
        (6, "fused", "mlp", "circular", 2, "same-order"),
        (6, "dense", "linear", "zero", 1, "blocked"),
        (4, "taylor", "mlp", "zero", 1, "any-order"),
        (33, "tiled", "lln", "circular", 1, "same-order"),
    ],
)
def test_every_kind_of_graph_is_built(
    size: int,
    form: FormChoice,
    head: str,
    padding: str,
    copies: int,
    accumulation: Accumulation,
    capfd: pytest.CaptureFixture[str],
) -> None:
    network = frozen(size, form, head, padding, copies)
    build = build_tensorrt(prepared(network, accumulation), PROFILE)
    weights = sum(array.size for array in network.weights().values())
    assert len(build.data) > weights
    assert capfd.readouterr() == ("", "")


@builds
def test_building_twice_gives_the_same_bytes(data: bytes, build: TensorRtBuild) -> None:
    assert build_tensorrt(data, PROFILE) == build


@builds
def test_the_profile_is_part_of_the_engine(data: bytes, build: TensorRtBuild) -> None:
    other = build_tensorrt(data, replace(PROFILE, most=16))
    assert other.settings["profile"] == {"least": 2, "best": 4, "most": 16}
    assert other.data != build.data


@builds
def test_settings_are_plain_values_that_say_what_the_engine_needs(build: TensorRtBuild) -> None:
    settings = json.loads(json.dumps(build.settings))
    assert settings == build.settings
    assert "TF32" not in settings["flags"]
    needed = Requirements.of_settings(settings, REBUILD)
    assert (needed.package, needed.version) == (build.package, build.versions[build.package])
    assert needed.gpu == GPU
    needed.check_version(needed.version, REBUILD)


@builds
def test_tf32_is_on_where_nobody_switches_it_off(
    data: bytes, build: TensorRtBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_builder, "_set_tf32", lambda *_, **__: None)
    _, answer = tensorrt_builder.build_here(data, build.settings)
    assert "TF32" in answer["settings"]["flags"]


@builds
@pytest.mark.parametrize("precision", ["tf32", "float16", "bfloat16"])
def test_every_precision_is_built(precision: str) -> None:
    network = frozen(8, "auto", "lln", "circular", 1).rounded_to(ARITHMETICS[precision])
    rounding = Rounding.of_graph(ARITHMETICS[precision], "blocked")
    manifest = make_manifest(network, tuple("abc"), {"size": 8}, {}, {}, rounding)
    data = bytes(build_model(network, manifest, prepared=True).SerializeToString())
    build = build_tensorrt(data, PROFILE, precision=precision)
    assert build.settings["precision"] == precision
    assert ("TF32" in build.settings["flags"]) == (precision == "tf32")
    if precision != "tf32":
        with pytest.raises(ExportError, match="computes in"):
            build_tensorrt(data, PROFILE)


@builds
def test_a_builder_that_dies_is_reported(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    text = message(ExportError, lambda: build_tensorrt(data, PROFILE))
    assert "died while it built the engine (status 1, " in text


def small_model(
    *nodes: onnx.NodeProto,
    kind: int = TensorProto.FLOAT,
    batch: int | str = "batch",
    outputs: tuple[str, ...] = ("features", "logits", "radius"),
) -> bytes:
    """A model from pixels to outputs that are rows of `body`, and `body` is what the nodes make."""
    rows = numpy_helper.from_array(np.array([0, -1]), "rows")
    ends = [helper.make_node("Reshape", ["body", "rows"], [name]) for name in outputs]
    graph = helper.make_graph(
        [*nodes, *ends],
        "small",
        [helper.make_tensor_value_info("pixels", kind, [batch, 3, 4, 4])],
        [helper.make_tensor_value_info(name, kind, [batch, 48]) for name in outputs],
        [rows],
    )
    opset = [helper.make_opsetid("", OPSET), helper.make_opsetid("custom", 1)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


PLAIN = helper.make_node("Add", ["pixels", "pixels"], ["body"], name="double")
HALF = (
    helper.make_node("Cast", ["pixels"], ["half"], name="cut", to=TensorProto.FLOAT16),
    helper.make_node("Add", ["half", "half"], ["twice"], name="double"),
    helper.make_node("Cast", ["twice"], ["body"], name="back", to=TensorProto.FLOAT),
)
FOREIGN = helper.make_node("Shake", ["pixels"], ["body"], name="middle", domain="custom")


@builds
def test_a_small_model_is_built() -> None:
    assert build_tensorrt(small_model(PLAIN), PROFILE).data


@builds
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (small_model(*HALF), "computes in HALF"),
        (small_model(PLAIN, kind=TensorProto.FLOAT16), "pixels is HALF"),
        (small_model(PLAIN, batch=4), "batches of any size"),
        (small_model(PLAIN, outputs=("features", "radius", "logits")), "features.*radius.*logits"),
        (small_model(PLAIN, outputs=("features", "logits")), "expected one from pixels to"),
        (small_model(FOREIGN), r"node 'middle' \(Shake\)"),
        (small_model(PLAIN)[:-30], "refuses the model"),
        (b"no model", "refuses the model"),
        (b"", "a network from .. to .."),
    ],
    ids=["half", "half-input", "batch", "order", "outputs", "foreign", "cut", "text", "empty"],
)
def test_other_models_are_refused_in_one_line(
    model: bytes, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text = message(ExportError, lambda: build_tensorrt(model, PROFILE))
    assert re.search(reason, text), text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 4), (1, 8, 4), (-1, 1, 1)])
def test_profiles_are_in_order(sizes: tuple[int, int, int]) -> None:
    text = message(UsageError, lambda: Profile(*sizes))
    assert f"batches of {sizes[0]}, {sizes[1]}, {sizes[2]}" in text


def test_without_a_package_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    text = message(ExportError, lambda: build_tensorrt(b"", PROFILE))
    assert "pip install 'lipdeploy[trt-rtx]'" in text
    assert "'lipdeploy[trt]'" in text


@builds
def test_without_cuda_python_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    text = message(ExportError, lambda: build_tensorrt(b"", PROFILE))
    assert "cuda-python is not installed; pip install 'lipdeploy[trt]'" in text


@asks_cuda
def test_failures_of_cuda_are_errors_with_their_reason() -> None:
    text = message(EngineError, lambda: checked(cuda_api().cudaSetDevice(10**6)))
    assert text.startswith("CUDA failed (")


def refused(settings: dict[str, object], data: bytes = b"", advice: str = REBUILD) -> str:
    """What it is refused with, which ends with what to type."""
    profile = (PROFILE.least, PROFILE.best, PROFILE.most)
    text = message(EngineError, lambda: TensorRtRuntime(data, settings, profile, REBUILD, ONNX))
    assert text.endswith(advice)
    return text


@pytest.mark.parametrize(("package", "extra"), [("tensorrt", "trt"), ("tensorrt_rtx", "trt-rtx")])
def test_without_the_package_nothing_runs(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    text = refused(SETTINGS | {"package": package})
    assert f"needs {package}; pip install 'lipdeploy[{extra}]'" in text


@builds
def test_another_version_runs_nothing(build: TensorRtBuild) -> None:
    text = refused(build.settings | {"version": "1.2.3.4"}, build.data)
    assert f"built with {build.package} 1.2.3.4, but {build.settings['version']}" in text


@builds
@pytest.mark.parametrize("content", [b"", b"no engine", bytes(1000)])
def test_a_file_that_is_no_engine_is_refused(build: TensorRtBuild, content: bytes) -> None:
    reason = "does not run the engine here (malformed engine)"
    if build.package == "tensorrt":
        reason = "cannot run the engine"
    assert reason in refused(build.settings, content)


@builds
@pytest.mark.skipif(GPU is not None, reason="is about machines without a GPU")
def test_without_a_gpu_nothing_runs(build: TensorRtBuild) -> None:
    text = refused(build.settings, build.data, f"give the ONNX engine beside it: --model {ONNX}")
    assert "CUDA finds none here; check nvidia-smi" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"package": "os"},
        {"package": None},
        {"hardware": "all"},
        {"version": 10},
        {"version": ""},
        {"gpu": "a fast one"},
        {"gpu": {"name": "a fast one"}},
        {"gpu": asdict(replace(ADA, compute_capability="new"))},
    ],
)
def test_damaged_settings_are_refused(changes: dict[str, object]) -> None:
    assert "settings of the engine are damaged" in refused(SETTINGS | changes)


@pytest.mark.parametrize("name", SETTINGS)
def test_missing_settings_are_refused(name: str) -> None:
    assert name in refused({key: value for key, value in SETTINGS.items() if key != name})


def needs(**changes: object) -> Requirements:
    return replace(Requirements.of_settings(SETTINGS, REBUILD), **changes)


@pytest.mark.parametrize("version", ["10.13.3.8", "10.13.3.10", "10.14.0.0", "11.0.0.114"])
def test_an_engine_runs_in_its_own_version(version: str) -> None:
    needs().check_version("10.13.3.9", REBUILD)
    text = message(EngineError, lambda: needs().check_version(version, REBUILD))
    assert f"10.13.3.9, but {version} is installed" in text
    assert text.endswith(REBUILD)


def test_a_version_compatible_engine_runs_in_later_ones_of_the_same_major_version() -> None:
    needed = needs(is_version_compatible=True)
    for version in ("10.13.3.9", "10.13.3.10", "10.14.0.0"):
        needed.check_version(version, REBUILD)
    for version in ("10.13.3.8", "10.9.0.34", "11.0.0.114", "1.7.1.116"):
        assert message(
            EngineError, lambda found=version: needed.check_version(found, REBUILD)
        ).endswith(REBUILD)


OTHER = Gpu("NVIDIA H100 80GB HBM3", "9.0", "13.0")
RENAMED = replace(ADA, name="NVIDIA L4")
OLD = Gpu("Tesla T4", "7.5", "13.0")


@pytest.mark.parametrize("gpu", [OTHER, RENAMED, OLD])
def test_an_engine_runs_on_its_own_gpu(gpu: Gpu) -> None:
    newer_driver = replace(ADA, driver="13.1")
    needs().check_gpu(newer_driver, REBUILD)
    text = message(EngineError, lambda: needs().check_gpu(gpu, REBUILD))
    assert f"built on {ADA}, but the GPU is {gpu};" in text
    assert text.endswith(REBUILD)


def test_a_portable_engine_runs_on_ampere_and_newer() -> None:
    needed = needs(hardware="ampere-or-newer")
    for gpu in (ADA, OTHER, RENAMED, replace(OTHER, compute_capability="12.0")):
        needed.check_gpu(gpu, REBUILD)
    text = message(EngineError, lambda: needed.check_gpu(OLD, REBUILD))
    assert "needs compute capability 8.0" in text
    assert text.endswith(REBUILD)


def test_an_engine_that_was_built_without_a_gpu_is_tied_to_none() -> None:
    needed = needs(hardware="any", gpu=None)
    for gpu in (OLD, OTHER):
        needed.check_gpu(gpu, REBUILD)


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, [0]), (1, [1]), (7, [7]), (8, [8]), (9, [8, 1]), (24, [8, 8, 8])]
)
def test_batches_are_cut_into_pieces_that_the_profile_takes(count: int, sizes: list[int]) -> None:
    cuts = pieces(count, 8)
    assert [cut.stop - cut.start for cut in cuts] == sizes
    assert [index for cut in cuts for index in range(cut.start, cut.stop)] == list(range(count))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5])
def test_small_batches_are_padded_behind(count: int) -> None:
    pixels = random_pixels(count, 4).astype(np.float32)
    longer = padded(pixels, 4)
    assert longer.shape == (max(count, 4), 3, 4, 4)
    assert longer.dtype == np.float32
    assert np.array_equal(longer[:count], pixels)
    assert not longer[count:].any()


@pytest.fixture(scope="module")
def runtime(build: TensorRtBuild) -> TensorRtRuntime:
    profile = (PROFILE.least, PROFILE.best, PROFILE.most)
    return TensorRtRuntime(build.data, build.settings, profile, REBUILD, ONNX)


@runs
@pytest.mark.parametrize("count", [0, 1, 2, 4, 8, 9, 19])
def test_the_engine_computes_the_network(runtime: TensorRtRuntime, count: int) -> None:
    network = frozen(6, "fused")
    pixels = random_pixels(count, 6)
    for _ in range(2):
        features, logits = runtime.run(pixels.astype(np.float32))
        assert (features.dtype, logits.dtype) == (np.float64, np.float64)
        expected = network.features(pixels)
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(logits, network.head.logits(expected), rtol=1e-4, atol=1e-4)


@runs
def test_more_batch_sizes_than_are_kept_ready(runtime: TensorRtRuntime) -> None:
    pixels = random_pixels(8, 6).astype(np.float32)
    for _ in range(2):
        for count in range(2, 9):
            assert len(runtime.run(pixels[:count])[0]) == count


@runs
def test_the_runtime_says_what_it_is(runtime: TensorRtRuntime, build: TensorRtBuild) -> None:
    assert runtime.description == (f"{build.package} {build.settings['version']}, float32, {GPU}")
    assert (runtime.arithmetic, runtime.runs_graph) == ("float32", False)


@runs
def test_half_an_engine_is_refused(build: TensorRtBuild) -> None:
    text = refused(build.settings, build.data[: len(build.data) // 2])
    assert f"{build.package} cannot run the engine" in text
