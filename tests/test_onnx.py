"""The ONNX files that are written, and the ones that are refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import make_network, random_pixels
from onnx import helper

from lipdeploy.artifact import MANIFEST_KEY, Manifest, make_manifest
from lipdeploy.errors import EngineError, ExportError, ModelError
from lipdeploy.exporters import onnx_file
from lipdeploy.exporters.export import export_model
from lipdeploy.exporters.freeze import freeze, layer_shapes
from lipdeploy.exporters.onnx import build_model
from lipdeploy.exporters.onnx_file import onnx_bytes, read_onnx
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.exporters.parity import compare, probe_inputs
from lipdeploy.frozen import (
    FrozenNetwork,
)
from lipdeploy.runtimes.numpy import NumpyRuntime
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.training.checkpoint import ModelCard, TrainedModel, save_model

CLASSES = ("ant", "bee", "cow")


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
