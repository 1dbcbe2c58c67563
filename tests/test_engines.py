"""Engines of several libraries: what they compute, and what the commands say of them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import random_pixels, save_model_file, write_image_folder

from lipdeploy.artifact import Engine
from lipdeploy.built import onnx_beside, read_built
from lipdeploy.canary import FACTOR, canary_difference, check_canary
from lipdeploy.errors import (
    EngineError,
    ExportError,
    UsageError,
)
from lipdeploy.exporters.engine_file import read_engine
from lipdeploy.exporters.export import export_model
from lipdeploy.exporters.onnx_file import served_bytes
from lipdeploy.exporters.options import SUFFIXES, ExportOptions
from lipdeploy.exporters.parity import compare
from lipdeploy.predictor import Predictor
from lipdeploy.runtimes.choice import open_runtime
from lipdeploy.runtimes.numpy import NumpyRuntime
from lipdeploy.runtimes.onnx import OnnxRuntime

Cli = Callable[..., tuple[int, str, str]]
openvino = pytest.importorskip("openvino", reason="pip install 'lipdeploy[openvino]'")


@pytest.mark.parametrize("head", ["lln", "mlp"])
@pytest.mark.parametrize("shape", [{}, {"image_size": 11}, {"padding": "zero"}])
def test_openvino_is_within_the_proven_bound(
    tmp_path: Path, shape: dict[str, object], head: str
) -> None:
    path = tmp_path / "model.xml"
    exported = export_model(
        save_model_file(tmp_path, head=head, **shape), path, ExportOptions(engine="openvino")
    )
    assert exported.checked.startswith("openvino")
    assert 0 < exported.parity.share_of_bound < 1
    read = read_engine(path)
    runtime = open_runtime(read)
    pixels = random_pixels(5, read.network.image_size, seed=3).astype(np.float32)
    parity = compare(read.network, read.manifest, runtime, pixels)
    assert parity.argmax_flips == 0


def test_openvino_rounds_like_float32_and_not_like_less(built: Path) -> None:
    read = read_engine(built)
    difference = canary_difference(read.network, open_runtime(read))
    assert 0 < difference < FACTOR * read.manifest.canary
    assert read.manifest.canary < 1e-3


@pytest.mark.parametrize("hint", ["latency", "throughput"])
@pytest.mark.parametrize("count", [1, 3, 65])
def test_every_batch_is_answered_in_order(built: Path, hint: str, count: int) -> None:
    from lipdeploy.runtimes.openvino import OpenVinoRuntime

    read = read_engine(built)
    network, runtime = read.network, OpenVinoRuntime(read.prepared, hint=hint)
    pixels = random_pixels(count, network.image_size)
    first, _ = runtime.run(pixels.astype(np.float32))
    again, _ = runtime.run(pixels[::-1].astype(np.float32))
    np.testing.assert_allclose(first, network.features(pixels), atol=1e-3)
    np.testing.assert_allclose(again[::-1], first, atol=1e-4)


def test_an_openvino_engine_predicts_with_the_statement_network(built: Path) -> None:
    image = random_pixels(1, 8)[0].astype(np.uint8).transpose(1, 2, 0)
    with Predictor(built) as predictor:
        assert predictor.guarantee == "network"
        assert predictor.statements == ("network",)
        assert predictor.runtime.description.startswith("openvino")
        (own,) = predictor([image])
    with Predictor(onnx_beside(built), guarantee="network") as predictor:
        (same,) = predictor([image])
    assert own.label == same.label
    assert own.certificate.radius_255 == pytest.approx(same.certificate.radius_255, rel=1e-3)
    with pytest.raises(UsageError, match="--guarantee program: there are no bounds for openvino"):
        Predictor(built, guarantee="program")


def test_an_onnx_engine_runs_with_openvino_too(model: Path, run_cli: Cli) -> None:
    path = model.with_name("other.onnx")
    export_model(model, path, ExportOptions())
    image = model.with_name("image.png")
    from PIL import Image

    Image.fromarray(random_pixels(1, 8)[0].astype(np.uint8).transpose(1, 2, 0)).save(image)
    found = {}
    for runtime in ("auto", "openvino", "numpy"):
        status, out, err = run_cli(
            "predict", image, "--model", path, "--runtime", runtime, "--certify", "--json"
        )
        assert status == 0, err
        found[runtime] = json.loads(out)
    assert found["openvino"]["engine"].startswith("openvino")
    assert found["openvino"]["guarantee"] == "network"
    radii = [answer["radius"] for answer in found.values()]
    assert max(radii) < 1.1 * min(radii)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--runtime", "tensorrt"), "is no TensorRT engine"),
        (("--runtime", "openvino", "--device", "cuda"), "openvino has no GPU here"),
        (("--runtime", "numpy", "--device", "cuda"), "numpy has no GPU here"),
        (("--runtime", "tensorrt", "--device", "cpu"), "TensorRT needs a GPU"),
        (("--runtime", "openvno"), "did you mean openvino?"),
        (("--runtime", "tensort"), "did you mean tensorrt?"),
        (("--device", "cuda"), "use --device cpu, or "),
        (("--device", "gpu"), "did you mean cuda?"),
        (("--batch", "0"), "must be at least 1"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(
    source: Path, run_cli: Cli, arguments: tuple[str, ...], message: str
) -> None:
    samples = source / "samples"
    status, out, err = run_cli(
        "predict", samples / "cat-0000.jpg", "--model", samples / "model.onnx", *arguments
    )
    assert status in (1, 2)
    assert not out
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "tensort"), "did you mean tensorrt?"),
        (("--engine", "openvino", "--output", "m.onnx"), "is named *.xml"),
        (("--engine", "trt", "--batch", "64", "--max-batch", "8"), "must be at least --batch 64"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(
    source: Path, run_cli: Cli, arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = run_cli("export", source / "samples" / "model.pt", *arguments)
    assert status in (1, 2)
    assert not out
    assert message in err


@pytest.mark.parametrize(
    ("kind", "packages", "extra"),
    [
        ("openvino", ("openvino",), "lipdeploy[openvino]"),
        ("trt", ("tensorrt", "tensorrt_rtx"), "lipdeploy[trt-rtx]"),
    ],
)
def test_a_missing_library_is_told_before_the_model_is_even_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    packages: tuple[str, ...],
    extra: str,
) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    options = ExportOptions(engine=kind)
    output = tmp_path / f"model{SUFFIXES[kind]}"
    with pytest.raises(ExportError, match=rf"is not installed; pip install '{re.escape(extra)}'"):
        export_model(tmp_path / "missing.pt", output, options)


@pytest.mark.parametrize(
    "wrong",
    [
        ("--engine", "onxx"),
        ("--form", "spectrl"),
        ("--precision", "half"),
        ("--output", "model.xml"),
        ("--batch", "0"),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_told_without_importing_what_takes_seconds(
    wrong: tuple[str, str],
) -> None:
    code = (
        "import sys; from lipdeploy import cli\n"
        f"sys.argv = ['lipdeploy', 'export', 'model.pt', *{wrong}]\n"
        "try:\n    cli.main()\n"
        "except SystemExit as stop:\n"
        "    print(stop.code, sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split(maxsplit=1) == ["2", "[]\n"]
    assert ended.stderr.startswith(f"Error: {wrong[0]} {wrong[1]}: ")


def test_an_engine_is_built_from_another_without_torch(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    code = "import sys; sys.modules['torch'] = None; from lipdeploy import cli; cli.main()"
    command = ["export", onnx_beside(built), "--engine", "openvino", "--output", path]
    subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True)
    assert read_built(path).files == read_built(built).files


def test_an_export_says_what_its_engine_offers_and_counts_all_of_its_files(
    model: Path, tmp_path: Path, run_cli: Cli
) -> None:
    path = tmp_path / "model.xml"
    status, out, err = run_cli("export", model, "--engine", "openvino", "-o", path)
    assert status == 0, err
    assert "guarantee  network, float32: each answer is compared with float64" in out
    assert "program" not in out
    megabytes = sum(file.stat().st_size for file in tmp_path.iterdir()) / 1e6
    assert f"files {megabytes:.1f} MB" in out
    assert megabytes > 1.5 * path.stat().st_size / 1e6


def test_a_model_that_is_no_ir_is_refused() -> None:
    from lipdeploy.runtimes.openvino import OpenVinoRuntime

    with pytest.raises(EngineError, match="OpenVINO cannot load the engine"):
        OpenVinoRuntime(b"<xml>")


def test_the_reference_runtime_needs_nothing_else(engine: Engine) -> None:
    assert isinstance(open_runtime(engine, "numpy"), NumpyRuntime)
    check_canary(engine, open_runtime(engine, "numpy"))


@pytest.mark.parametrize(("batch", "spins"), [(1, "1"), (8, "1"), (9, "0"), (64, "0"), ("8", "0")])
def test_engines_for_few_images_are_run_for_latency(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, batch: object, spins: str
) -> None:
    opened: list[str] = []
    options = OnnxRuntime._options

    def watched(self: OnnxRuntime) -> Any:
        made = options(self)
        opened.append(made.get_session_config_entry("session.intra_op.allow_spinning"))
        return made

    monkeypatch.setattr(OnnxRuntime, "_options", watched)
    source = engine.manifest.source | {"made_for_batch": batch}
    made = replace(engine, manifest=replace(engine.manifest, source=source))
    runtime = open_runtime(made, "onnxruntime", "cpu")
    assert isinstance(runtime, OnnxRuntime)
    runtime.same_device(engine.prepared)
    assert opened == [spins, spins]


def test_bound_memory_gives_the_same_numbers(engine: Engine) -> None:
    runtime = OnnxRuntime(served_bytes(engine), "cpu")
    pixels = {"pixels": random_pixels(3, 8).astype(np.float32)}
    names = ["logits", "radius", "features"]
    for a, b in zip(
        runtime.outputs(names, pixels), runtime.bound_outputs(names, pixels), strict=True
    ):
        assert np.array_equal(a, b)


def test_triton_gets_what_predict_runs_and_the_radius(
    model: Path, tmp_path: Path, run_cli: Cli
) -> None:
    path = tmp_path / "ants.onnx"
    status, out, err = run_cli("export", model, "-o", path, "--triton", tmp_path / "models")
    assert status == 0, err
    served = tmp_path / "models" / "ants" / "1" / "model.onnx"
    assert str(served.parents[1]) in out
    engine = read_engine(path)
    assert served.read_bytes() == served_bytes(engine)
    whole, answers = (
        onnx.load_model_from_string(data).graph for data in (served.read_bytes(), engine.prepared)
    )
    common = {node.name: node for node in whole.node}
    assert all(common[node.name] == node for node in answers.node)
    assert [output.name for output in answers.output] == ["features", "logits"]
    assert "ArgMax" not in {node.op_type for node in answers.node}
    status, _, err = run_cli("export", model, "--engine", "openvino", "--triton", tmp_path)
    assert status == 2
    assert "cannot hold OpenVINO to float32" in err


def test_all_engines_are_compared_on_a_test_set(source: Path, model: Path, tmp_path: Path) -> None:
    data = write_image_folder(tmp_path / "data", 8)
    script = source / "benchmarks" / "engines_check.py"
    ended = subprocess.run(
        [sys.executable, script, model, data], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert {"onnxruntime, blocked", "openvino", "torch", "numpy, float64"} < set(found)
    for name, one in found.items():
        assert one["ok"], name
        assert 0 <= one["max_difference"] <= one["bound"]
        assert one["argmax_flips"] == 0
    assert found["openvino"]["max_difference"] > found["numpy, float64"]["max_difference"]
