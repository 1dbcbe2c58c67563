"""Engines that are families of files: each is what it was built as, or is refused."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from lipdeploy.built import BuildRecord, onnx_beside, read_built, record_beside
from lipdeploy.errors import (
    EngineError,
    ModelError,
)
from lipdeploy.exporters.engine_file import read_engine
from lipdeploy.exporters.export import export_model
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.locate import find_model
from lipdeploy.predictor import Predictor

Cli = Callable[..., tuple[int, str, str]]
openvino = pytest.importorskip("openvino", reason="pip install 'lipdeploy[openvino]'")


def copied(built: Path, folder: Path) -> Path:
    """The family of an engine in another folder."""
    for path in built.parent.glob("model.*"):
        if path.suffix != ".pt":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder / built.name


def test_a_family_is_refused_when_one_file_is_another(built: Path, tmp_path: Path) -> None:
    path = copied(built, tmp_path)
    for name in (path, path.with_suffix(".bin"), onnx_beside(path), record_beside(path)):
        whole = name.read_bytes()
        name.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ModelError):
            read_engine(path)
        name.unlink()
        with pytest.raises(ModelError):
            read_engine(path)
        name.write_bytes(whole)
    assert read_engine(path).built is not None


def test_a_changed_file_names_the_command_that_mends_it(built: Path, tmp_path: Path) -> None:
    path = copied(built, tmp_path)
    path.with_suffix(".bin").write_bytes(b"other")
    with pytest.raises(
        ModelError, match=r"model.bin: another file than was built; type '(.*)'$"
    ) as e:
        read_engine(path)
    command = str(e.value).split("type '")[1].rstrip("'").split()
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    assert read_engine(path).built is not None


def member(path: Path, part: str) -> Path:
    """A file of a family, by what it is."""
    beside = {"model": path, "weights": path.with_suffix(".bin")}
    return (beside | {"graph": onnx_beside(path), "record": record_beside(path)})[part]


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut"])
@pytest.mark.parametrize("part", ["model", "weights", "graph", "record"])
@pytest.mark.parametrize("command", ["predict", "verify"])
def test_a_missing_or_damaged_file_is_named_with_the_command_that_makes_it(
    built: Path, tmp_path: Path, run_cli: Cli, command: str, part: str, damage: str
) -> None:
    path = copied(built, tmp_path)
    bad = member(path, part)
    content = {"empty": b"", "text": b"hello", "cut": bad.read_bytes()[:-9]}
    bad.unlink()
    if damage != "missing":
        bad.write_bytes(content[damage])
    arguments = ["verify", path]
    if command == "predict":
        arguments = ["predict", tmp_path / "any.png", "--model", path]
    status, out, err = run_cli(*arguments)
    said = next(line for line in (out + err).splitlines() if "type 'lipdeploy export" in line)
    assert status == 1
    assert len(err.splitlines()) == 1
    assert (command == "verify") == err.startswith(f"do not use {path}")
    assert str(bad) in said
    # The graph is what the others are built from; where it is lost, only the model has it.
    source = "MODEL.pt" if part == "graph" else onnx_beside(path)
    assert f"type 'lipdeploy export {source} --engine openvino --output {path}'" in said
    assert "Error(" not in said


@pytest.mark.parametrize("command", ["predict", "verify", "inspect"])
def test_a_part_of_a_family_is_answered_with_the_file_to_give(
    built: Path, run_cli: Cli, command: str
) -> None:
    for part in ("weights", "record"):
        given = member(built, part)
        model = ["image.png", "--model", given] if command == "predict" else [given]
        status, out, err = run_cli(command, *model)
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        assert str(given) in err
        assert err.rstrip().endswith(str(built))


def test_a_family_without_its_record_and_graph_is_exported_again(
    built: Path, tmp_path: Path
) -> None:
    path = copied(built, tmp_path)
    record_beside(path).unlink()
    onnx_beside(path).unlink()
    with pytest.raises(ModelError, match=r"lipdeploy export MODEL.pt .* the model.pt it came from"):
        read_engine(path)


def test_files_that_openvino_would_not_write_never_reach_it(built: Path, tmp_path: Path) -> None:
    path = copied(built, tmp_path)
    text = path.read_text().replace('type="MatMul"', 'type="MatMul" ', 1)
    path.write_text(text)
    values = json.loads(record_beside(path).read_text())
    values["files"][".xml"] = hashlib.sha256(text.encode()).hexdigest()
    record_beside(path).write_text(json.dumps(values))
    with pytest.raises(EngineError, match="not what OpenVINO makes of its ONNX engine; type"):
        Predictor(path)
    values["versions"]["openvino"] = "2020.1"
    record_beside(path).write_text(json.dumps(values))
    with pytest.raises(EngineError, match=r"built with openvino 2020.1, here is openvino"):
        Predictor(path)


def test_the_onnx_engine_of_another_export_is_refused(built: Path, tmp_path: Path) -> None:
    path = copied(built, tmp_path)
    export_model(built.with_name("model.pt"), onnx_beside(path), ExportOptions(weights="float32"))
    with pytest.raises(ModelError, match=r"not the ONNX engine that model.xml was built from"):
        read_engine(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "x"},
        {"format_version": 2},
        {"kind": "tensorrt"},
        {"kind": "numpy"},
        {"files": []},
        {"files": {".xml": 1}},
        {"files": {"bin": "0" * 64}},
        {"files": {".a/b": "0" * 64, ".xml": "0" * 64}},
        {"files": {".bin": "0" * 64}},
        {"settings": 1},
        {"versions": {"openvino": None}},
        {"extra": 1},
        {"onnx_sha256": 5},
    ],
    ids=str,
)
def test_a_record_that_says_something_else_is_refused(
    built: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    path = copied(built, tmp_path)
    values = json.loads(record_beside(path).read_text()) | change
    record_beside(path).write_text(json.dumps(values))
    with pytest.raises(ModelError):
        read_engine(path)


def test_a_record_is_read_back(built: Path) -> None:
    record = read_built(built).record
    assert BuildRecord.from_json(record.to_json()) == record
    assert record.versions["openvino"] == openvino.__version__


def test_the_files_are_the_same_twice(model: Path, built: Path, tmp_path: Path) -> None:
    again = tmp_path / "model.xml"
    export_model(model, again, ExportOptions(engine="openvino"))
    assert read_built(again).files == read_built(built).files


def test_the_newest_engine_is_the_one_that_a_user_would_name(built: Path, tmp_path: Path) -> None:
    path = copied(built, tmp_path)
    found, why = find_model(None, {}, tmp_path)
    assert (found, why) == (path, f"newest under {tmp_path}")
    record_beside(path).unlink()
    assert find_model(None, {}, tmp_path)[1].startswith("bundled")
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(onnx_beside(path).read_bytes())
    assert find_model(None, {}, tmp_path)[0] == plain


def test_verify_checks_the_family_and_its_onnx_engine(
    built: Path, tmp_path: Path, run_cli: Cli
) -> None:
    path = copied(built, tmp_path)
    status, out, _ = run_cli("verify", path)
    assert status == 0, out
    assert "canary, openvino" in out
    assert "graph" in out
    path.with_suffix(".bin").write_bytes(b"other")
    status, out, _ = run_cli("verify", path)
    assert status == 1
    assert "another file than was built" in out


def test_inspect_shows_what_it_was_built_with(built: Path, run_cli: Cli) -> None:
    status, out, _ = run_cli("inspect", built, "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["kind"] == "engine (OpenVINO)"
    assert facts["guarantee"] == "network"
    assert facts["build"]["versions"]["openvino"] == openvino.__version__


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="pip install 'lipdeploy[trt-rtx]'")
def test_a_tensorrt_engine_is_a_family_too(model: Path, tmp_path: Path, run_cli: Cli) -> None:
    path = tmp_path / "model.engine"
    arguments = ("--engine", "tensorrt", "--output", path)
    status, out, err = run_cli("export", model, *arguments)
    assert status == 0, err
    assert "onnxruntime" in out + err  # what the check ran on
    read = read_engine(path)
    assert read.built.record.kind == "tensorrt"
    assert read.built.record.settings["profile"] == {"least": 1, "best": 64, "most": 256}
    if read.built.record.settings["package"] == "tensorrt_rtx":
        status, _, err = run_cli("export", model, *arguments, "--triton", tmp_path / "models")
        assert status == 1
        assert "Triton loads plans of TensorRT" in err
    status, out, err = run_cli("verify", path)
    assert status == 0, out
    assert "not run: native code" in out
    status, _, err = run_cli(
        "export", onnx_beside(path), "--engine", "trt", "-o", path, "--precision", "float16"
    )
    assert status == 2
    assert "--precision: model.engine.onnx is an engine" in err
    again = tmp_path / "again.engine"
    status, _, err = run_cli(
        "export", onnx_beside(path), "--engine", "trt", "--output", again, "--batch", "8"
    )
    assert status == 0, err
    assert read_engine(again).built.record.settings["profile"]["best"] == 8
    with Predictor(path, runtime="onnxruntime") as predictor:
        assert predictor.guarantee == "program"


def test_openvino_cannot_change_what_was_planned_for(
    model: Path, tmp_path: Path, run_cli: Cli
) -> None:
    source = tmp_path / "planned.onnx"
    export_model(model, source, ExportOptions(batch=8))
    status, _, err = run_cli("export", source, "--engine", "openvino", "--batch", "1")
    assert status == 2
    assert "--batch: planned.onnx is an engine" in err
    assert not source.with_suffix(".xml").exists()


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="pip install 'lipdeploy[trt-rtx]'")
def test_a_tensorrt_engine_without_a_gpu_says_so(model: Path, tmp_path: Path, run_cli: Cli) -> None:
    from lipdeploy.runtimes.cuda import find_gpu

    if find_gpu() is not None:
        pytest.skip("there is a GPU")
    path = tmp_path / "model.engine"
    status, out, err = run_cli("export", model, "--engine", "trt", "--output", path)
    assert status == 0, err
    assert "model.engine needs an NVIDIA GPU to run" in out
    assert out.endswith(f"predict IMAGE --certify --model {onnx_beside(path)}\n")
    status, out, err = run_cli("predict", path.with_name("x.png"), "--model", path)
    assert status == 1
    assert not out
    assert "NVIDIA GPUs" in err
    assert err.endswith(f"give the ONNX engine beside it: --model {onnx_beside(path)}\n")
    settings = json.loads(record_beside(path).read_text())
    for profile in (3, {}, {"least": 1, "best": 1, "most": 0}):
        settings["settings"]["profile"] = profile
        record_beside(path).write_text(json.dumps(settings))
        status, _, err = run_cli("predict", path.with_name("x.png"), "--model", path)
        assert status == 1
        assert "the record has no batch sizes" in err
