"""Engines of several libraries: families of files, runtimes, the canary, the gate at the export."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import make_network, random_pixels, write_image_folder

from lipdeploy.artifact import Engine
from lipdeploy.built import BuildRecord, onnx_beside, read_built, record_beside
from lipdeploy.canary import FACTOR, canary_difference, canary_pixels, check_canary
from lipdeploy.errors import (
    ArithmeticMismatchError,
    EngineError,
    ExportError,
    ModelError,
    UsageError,
)
from lipdeploy.exporters.engine_file import read_engine
from lipdeploy.exporters.export import export_model
from lipdeploy.exporters.options import SUFFIXES, ExportOptions
from lipdeploy.exporters.parity import compare, hostile_inputs
from lipdeploy.exporters.trained import build_engine
from lipdeploy.locate import find_model
from lipdeploy.predictor import Predictor
from lipdeploy.runtimes import Array, Pixels
from lipdeploy.runtimes.choice import open_runtime
from lipdeploy.runtimes.numpy import NumpyRuntime
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.training.checkpoint import ModelCard, TrainedModel, save_model

Cli = Callable[..., tuple[int, str, str]]
openvino = pytest.importorskip("openvino", reason="pip install 'lipdeploy[openvino]'")


def trained(folder: Path, **shape: object) -> Path:
    """A small model file."""
    network = make_network(**shape)
    card = ModelCard(tuple(f"class {i}" for i in range(3)), "none", "test", 0)
    size = network.architecture.image_size
    import torch

    examples = torch.from_numpy(random_pixels(4, size)).float()
    path = folder / "model.pt"
    save_model(TrainedModel(network, card, examples), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("model"), width=8)


@pytest.fixture(scope="module")
def built(model: Path) -> Path:
    path = model.with_name("model.xml")
    export_model(model, path, ExportOptions(engine="openvino"))
    return path


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return build_engine(model, ExportOptions())


def copied(built: Path, folder: Path) -> Path:
    """The family of an engine in another folder."""
    for path in built.parent.glob("model.*"):
        if path.suffix != ".pt":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder / built.name


@pytest.mark.parametrize("head", ["lln", "mlp"])
@pytest.mark.parametrize("shape", [{}, {"image_size": 11}, {"padding": "zero"}])
def test_openvino_is_within_the_proven_bound(
    tmp_path: Path, shape: dict[str, object], head: str
) -> None:
    path = tmp_path / "model.xml"
    exported = export_model(
        trained(tmp_path, head=head, **shape), path, ExportOptions(engine="openvino")
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
    assert len(err.splitlines()) == (command == "predict")
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
    assert facts["build"]["versions"]["openvino"] == openvino.__version__


class Rounding:
    """A stand-in that computes as the engine does, with operands of products cut to fewer bits."""

    arithmetic = "float32"
    runs_graph = True
    description = "a stand-in"

    def __init__(self, engine: Engine, bits: int) -> None:
        model = onnx.load_model_from_string(engine.prepared)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims:
                values = cut(onnx.numpy_helper.to_array(tensor), bits)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        self.runtime = OnnxRuntime(model.SerializeToString(), "cpu")

    def run(self, pixels: Pixels) -> tuple[Array, Array]:
        return self.runtime.run(pixels)


def cut(values: np.ndarray, bits: int) -> np.ndarray:
    """Numbers with so many significant bits, as tensor cores cut them."""
    return (values.view(np.uint32) & np.uint32(~((1 << (24 - bits)) - 1) & 0xFFFFFFFF)).view(
        np.float32
    )


@pytest.mark.parametrize("bits", [11, 8])
def test_the_canary_finds_operands_of_fewer_bits(model: Path, bits: int) -> None:
    engine = build_engine(model, ExportOptions(weights="float32"))
    check_canary(engine, OnnxRuntime(engine.prepared, "cpu"))
    with pytest.raises(ArithmeticMismatchError, match="a stand-in does not compute in float32"):
        check_canary(engine, Rounding(engine, bits))


def half_sums(engine: Engine) -> OnnxRuntime:
    """The engine with the result of every product rounded to float16."""
    model = onnx.load_model_from_string(engine.prepared)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "MatMul":
            nodes.append(node)
            continue
        (name,) = node.output
        node.output[0] = f"{name}.sum"
        half = onnx.helper.make_node("Cast", [f"{name}.sum"], [f"{name}.half"], to=10)
        nodes += [node, half, onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=1)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return OnnxRuntime(model.SerializeToString(), "cpu")


def test_the_canary_finds_sums_in_half_precision(engine: Engine) -> None:
    with pytest.raises(ArithmeticMismatchError, match="differ from float64"):
        check_canary(engine, half_sums(engine))


def test_a_canary_in_the_file_cannot_allow_more_than_is_proven(engine: Engine) -> None:
    generous = replace(engine, manifest=replace(engine.manifest, canary=1e9))
    with pytest.raises(ArithmeticMismatchError):
        check_canary(generous, Rounding(generous, 8))


def test_torch_is_not_believed_an_order_of_sums(model: Path) -> None:
    ordered = build_engine(model, ExportOptions(accumulation="same-order"))
    with Predictor(ordered, runtime="torch") as predictor:
        assert predictor.guarantee == "network"
    with Predictor(ordered) as predictor:
        assert predictor.guarantee == "program"


def test_without_a_measured_canary_the_proven_bound_decides(engine: Engine) -> None:
    bare = replace(engine, manifest=replace(engine.manifest, canary=0.0))
    check_canary(bare, OnnxRuntime(bare.prepared, "cpu"))
    with pytest.raises(ArithmeticMismatchError):
        check_canary(bare, Rounding(bare, 8))


def test_the_canary_looks_before_anything_is_certified(engine: Engine) -> None:
    lying = replace(engine, prepared=_with_wrong_bias(engine.prepared))
    with pytest.raises(ArithmeticMismatchError):
        Predictor(lying)
    with Predictor(lying, certify=False) as predictor:
        list(predictor([random_pixels(1, 8)[0].astype(np.uint8).transpose(1, 2, 0)]))


def _with_wrong_bias(data: bytes) -> bytes:
    model = onnx.load_model_from_string(data)
    (tensor,) = [t for t in model.graph.initializer if t.name.startswith("layer0.bias")][:1]
    values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return bytes(model.SerializeToString())


def test_canary_images_are_whole_numbers_of_the_pixel_range() -> None:
    pixels = canary_pixels(9)
    assert pixels.shape == (4, 3, 9, 9)
    assert np.array_equal(pixels, pixels.round())
    assert pixels.min() >= 0
    assert pixels.max() <= 255


def test_the_gate_at_the_export_holds_for_inputs_that_are_no_images(engine: Engine) -> None:
    pixels = hostile_inputs(8)
    parity = compare(engine.network, engine.manifest, OnnxRuntime(engine.prepared, "cpu"), pixels)
    assert 0 < parity.share_of_bound < 1
    with pytest.raises(ExportError, match="proven for float32"):
        compare(engine.network, engine.manifest, half_sums(engine), random_pixels(8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--runtime", "tensorrt"), "is no TensorRT engine"),
        (("--runtime", "openvino", "--device", "cuda"), "openvino has no GPU here"),
        (("--runtime", "numpy", "--device", "cuda"), "numpy has no GPU here"),
        (("--runtime", "tensorrt", "--device", "cpu"), "TensorRT needs a GPU"),
        (("--runtime", "openvno"), "did you mean openvino?"),
        (("--runtime", "trt"), "did you mean tensorrt?"),
        (("--runtime", "onnx"), "did you mean onnxruntime?"),
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


def test_bound_memory_gives_the_same_numbers(engine: Engine) -> None:
    runtime = OnnxRuntime(engine.prepared, "cpu")
    pixels = {"pixels": random_pixels(3, 8).astype(np.float32)}
    names = ["logits", "radius", "features"]
    for a, b in zip(
        runtime.outputs(names, pixels), runtime.bound_outputs(names, pixels), strict=True
    ):
        assert np.array_equal(a, b)


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


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="pip install 'lipdeploy[trt-rtx]'")
def test_a_tensorrt_engine_without_a_gpu_says_so(model: Path, tmp_path: Path, run_cli: Cli) -> None:
    from lipdeploy.runtimes.cuda import find_gpu

    if find_gpu() is not None:
        pytest.skip("there is a GPU")
    path = tmp_path / "model.engine"
    export_model(model, path, ExportOptions(engine="trt"))
    status, out, err = run_cli("predict", path.with_name("x.png"), "--model", path)
    assert status == 1
    assert not out
    assert "NVIDIA GPUs" in err
    assert "lipdeploy export" in err
    settings = json.loads(record_beside(path).read_text())
    for profile in (3, {}, {"least": 1, "best": 1, "most": 0}):
        settings["settings"]["profile"] = profile
        record_beside(path).write_text(json.dumps(settings))
        status, _, err = run_cli("predict", path.with_name("x.png"), "--model", path)
        assert status == 1
        assert "the record has no batch sizes" in err


def test_a_model_for_triton_is_what_predict_runs(model: Path, tmp_path: Path, run_cli: Cli) -> None:
    path = tmp_path / "ants.onnx"
    status, out, err = run_cli("export", model, "-o", path, "--triton", tmp_path / "models")
    assert status == 0, err
    served = tmp_path / "models" / "ants" / "1" / "model.onnx"
    assert str(served.parents[1]) in out
    assert served.read_bytes() == read_engine(path).prepared
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
