"""What goes wrong, as a person meets it: one row each of input, message and exit status.

Every row runs a command. What is wrong is said in one line that names what came and what to do.
"""

import errno
import io
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import ignore, make_network, own_test_set, write_image_folder
from onnx import helper
from PIL import Image, ImageOps, PngImagePlugin

from lipdeploy.artifact import MANIFEST_KEY, Manifest
from lipdeploy.exporters.export import export_model
from lipdeploy.exporters.onnx_file import stored_weights
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.training.checkpoint import ModelCard, TrainedModel, load_model, save_model
from lipdeploy.training.run_folder import read_checkpoint

Cli = Callable[..., tuple[int, str, str]]


# Images


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def png_of(width: int, height: int, colour: int = 2, depth: int = 8) -> bytes:
    """A PNG that claims a size and holds a few thousand zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        chunk(b"IDAT", zlib.compress(bytes(5000))),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def text_bomb() -> bytes:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "x" * (80 << 20), zip=True)
    return encoded(photo(), pnginfo=notes)


def animation(kind: str) -> bytes:
    frames = [photo(mode="L"), photo().rotate(90)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def scans(count: int) -> bytes:
    """A progressive JPEG that repeats its last scan; each costs a pass over all pixels."""
    data = encoded(photo(), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + data[-2:]


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(), "JPEG", exif=exif)


REFUSED_IMAGES = [
    ("empty", b"", r"not a readable image \(none of BMP, GIF, JPEG"),
    ("text named .png", b"hello, I am text", r"not a readable image"),
    ("truncated JPEG", encoded(photo(), "JPEG")[:-300], r"not a readable image"),
    ("truncated PNG", encoded(photo())[:-300], r"not a readable image"),
    ("PNG bomb", png_of(30_000, 30_000), r"more than 50 million pixels; make it smaller"),
    ("large PNG", png_of(8_000, 8_000), r"8000 x 8000 pixels, limit 50 million; make it smaller"),
    ("PNG with a bomb of text", text_bomb(), r"not a readable image"),
    ("JPEG of many scans", scans(300), r"a JPEG of more than 100 scans; save it again"),
    ("1 x 1", encoded(photo(1, 1)), r"1 x 1 pixels, expected at least 4 on each side"),
    ("a line", encoded(photo(500, 4)), r"differ by more than 100 times; cut out a part"),
    ("16-bit grey", encoded(Image.new("I;16", (40, 30))), r"mode 'I;16'.*save it as 8-bit RGB"),
    ("32-bit float", encoded(Image.new("F", (40, 30)), "TIFF"), r"mode 'F'.*save it as 8-bit RGB"),
    ("PDF", encoded(photo(), "PDF"), r"not a readable image"),
]

ACCEPTED_IMAGES = [
    # name, data, whether it has a radius in the file's own pixels
    ("CMYK JPEG", encoded(photo(mode="CMYK"), "JPEG"), False),
    ("16-bit colour", png_of(30, 20, depth=16), False),
    ("palette", encoded(photo(mode="P")), False),
    ("alpha", encoded(photo(mode="RGBA")), False),
    ("grey with alpha", encoded(photo(mode="LA")), False),
    ("black and white", encoded(photo(mode="1")), False),
    ("grey", encoded(photo(mode="L")), True),
    ("turned by EXIF", turned(), True),
    ("animated GIF", animation("GIF"), False),
    ("animated WebP", animation("WEBP"), True),
]


@pytest.fixture
def predict(run_cli: Cli, source: Path) -> Cli:
    model = source / "samples" / "model.onnx"
    return lambda *arguments: run_cli(
        "predict", *arguments, "--certify", "--json", "--model", model
    )


@pytest.mark.parametrize(
    ("name", "data", "message"), REFUSED_IMAGES, ids=[row[0] for row in REFUSED_IMAGES]
)
def test_images_that_are_refused(
    predict: Cli, source: Path, tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    path = tmp_path / f"{name}.png"
    path.write_bytes(data)
    status, output, errors = predict(path, source / "samples" / "cat-0000.jpg")
    bad, good = map(json.loads, output.splitlines())
    assert (status, errors) == (1, "")
    assert set(bad) == {"path", "error"}
    assert re.search(message, bad["error"])
    assert "\n" not in bad["error"]
    assert good["radius"] > 0


@pytest.mark.parametrize(
    ("name", "data", "has_file_radius"), ACCEPTED_IMAGES, ids=lambda v: str(v)[:20]
)
def test_unusual_images_that_are_accepted(
    predict: Cli, tmp_path: Path, name: str, data: bytes, has_file_radius: bool
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with Image.open(io.BytesIO(data)) as image:
        colours = ImageOps.exif_transpose(image).convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    Image.alpha_composite(white, colours).convert("RGB").save(tmp_path / "plain.png")
    status, output, _ = predict(path, tmp_path / "plain.png")
    row, plain = map(json.loads, output.splitlines())
    assert status == 0
    assert row["logits"] == plain["logits"]
    assert (row["radius_file"] is not None) == has_file_radius


def test_the_first_picture_of_an_animation_counts(predict: Cli, tmp_path: Path) -> None:
    (tmp_path / "many.png").write_bytes(animation("GIF"))
    (tmp_path / "one.png").write_bytes(encoded(photo(mode="L"), "GIF"))
    rows = [json.loads(line) for line in predict(tmp_path)[1].splitlines()]
    assert rows[0]["logits"] == rows[1]["logits"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.png", "no such file, and nothing that matches it; give the path of an image"),
        ("folder", "a directory without images; expected .bmp .gif"),
    ],
)
def test_paths_without_images_are_refused(
    predict: Cli, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    status, output, _ = predict(tmp_path / name)
    assert status == 1
    assert json.loads(output)["error"].startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.onnx", "an engine, not an image; type 'lipdeploy predict IMAGE --model {}'"),
        ("model.pt", "a trained model, not an image; type 'lipdeploy export {}'"),
    ],
)
def test_models_in_place_of_images_are_told_where_they_belong(
    predict: Cli, source: Path, name: str, message: str
) -> None:
    path = source / "samples" / name
    status, output, _ = predict(path, source / "samples" / "cat-0000.jpg")
    bad, good = map(json.loads, output.splitlines())
    assert status == 1
    assert bad["error"].startswith(message.format(path))
    assert good["radius"] > 0


@pytest.mark.parametrize("name", ["[bold]a.png", "\x1b[2J.png", os.fsdecode(b"\xff\xfe.png")])
def test_names_that_are_markup_control_characters_or_no_text_are_shown_as_they_are(
    run_cli: Cli, source: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes((source / "samples" / "cat-0000.jpg").read_bytes())
    status, output, _ = run_cli("predict", path, "--model", source / "samples" / "model.onnx")
    assert status == 0
    assert "\x1b" not in output
    assert output.splitlines()[1].startswith(str(tmp_path))


# Model files


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model.pt and the engine made of it."""
    folder = tmp_path_factory.mktemp("workshop")
    card = ModelCard(("ant", "bee", "cow"), "tiny", "lipdeploy train tiny", 1)
    save_model(TrainedModel(make_network(), card, torch.zeros(2, 3, 8, 8)), folder / "model.pt")
    export_model(folder / "model.pt", folder / "model.onnx", ExportOptions())
    return folder


class Hostile:
    """Unpickled with Python's own unpickler, it would leave a file behind."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("this-must-never-exist",))


def changed_state(workshop: Path, change: Callable[[dict[str, object]], None]) -> bytes:
    content = torch.load(workshop / "model.pt", weights_only=True)
    change(content)
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def poison(value: float) -> Callable[[dict[str, object]], None]:
    def change(content: dict[str, object]) -> None:
        content["state"]["head.linear.bias"][0] = value

    return change


def changed_graph(workshop: Path, change: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load(workshop / "model.onnx")
    change(model)
    return bytes(model.SerializeToString())


def foreign_onnx() -> bytes:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", 1, [1])], [value("y", 1, [1])]
    )
    return bytes(helper.make_model(graph).SerializeToString())


def kept_outside(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    return change


def other_weight(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "head.weight")
    values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def other_operation(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Max")
    node.op_type = "Min"


def one_more_node(model: onnx.ModelProto) -> None:
    """A loop that would never end, if anybody ran it."""
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=model.graph))


def a_function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("", "Max", ["a", "b"], ["c"], [], []))


def many_empty_nodes(model: onnx.ModelProto) -> None:
    """Two bytes each in the file, a hundred in memory."""
    model.graph.ClearField("node")
    model.graph.MergeFromString(b"\x0a\x00" * 200_000)


def much_text(model: onnx.ModelProto) -> None:
    model.graph.node[0].doc_string = "x" * (9 << 20)


def long_manifest(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value += " " * (2 << 20)


def deep_manifest(model: onnx.ModelProto) -> None:
    values = json.loads(model.metadata_props[0].value)
    for _ in range(500):
        values["source"] = {"a": values["source"]}
    helper.set_model_props(model, {MANIFEST_KEY: json.dumps(values)})


def large_bound(model: onnx.ModelProto) -> None:
    values = json.loads(model.metadata_props[0].value) | {"lipschitz_upper": 10**400}
    helper.set_model_props(model, {MANIFEST_KEY: json.dumps(values)})


def not_a_number(model: onnx.ModelProto) -> None:
    """In a weight, with a hash that is right again."""
    tensor = next(t for t in model.graph.initializer if t.name == "head.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), tensor.name))
    manifest = Manifest.from_json(model.metadata_props[0].value)
    manifest = replace(manifest, sha256=manifest.digest(stored_weights(model)))
    helper.set_model_props(model, {MANIFEST_KEY: manifest.to_json()})


def less_bound(model: onnx.ModelProto) -> None:
    values = json.loads(model.metadata_props[0].value)
    values["lipschitz_upper"] /= 100
    helper.set_model_props(model, {MANIFEST_KEY: json.dumps(values)})


MODEL_FILES: list[tuple[str, Callable[[Path], bytes | None], str]] = [
    ("missing.onnx", lambda w: None, "no such file; expected an engine"),
    ("missing.pt", lambda w: None, "no such file; expected a"),
    ("empty.onnx", lambda w: b"", "make one with 'lipdeploy export'"),
    ("empty.pt", lambda w: b"", "not a lipdeploy-model.*train again"),
    ("text.onnx", lambda w: b"hello, I am text", "not an engine .an ONNX file.*make one with"),
    ("text.pt", lambda w: b"hello, I am text", "not a lipdeploy-model.*train again"),
    (
        "cut.onnx",
        lambda w: (w / "model.onnx").read_bytes()[:-500],
        "or a damaged one; make one with",
    ),
    ("cut.pt", lambda w: (w / "model.pt").read_bytes()[:-500], "damaged one.*train again"),
    ("pickle.pt", lambda w: pickle.dumps(Hostile()), "not a lipdeploy-model"),
    (
        "code.pt",
        lambda w: changed_state(w, lambda c: c.update(card=Hostile())),
        "not a lipdeploy-model",
    ),
    ("foreign.onnx", lambda w: foreign_onnx(), "not one of lipdeploy; make one with"),
    ("nan.pt", lambda w: changed_state(w, poison(np.nan)), "NaN or infinite; train again"),
    ("infinite.pt", lambda w: changed_state(w, poison(np.inf)), "NaN or infinite; train again"),
    (
        "external.onnx",
        lambda w: changed_graph(w, kept_outside("weights.bin")),
        "weights in other files, which lipdeploy never reads",
    ),
    (
        "climbing.onnx",
        lambda w: changed_graph(w, kept_outside("../../etc/passwd")),
        "weights in other files, which lipdeploy never reads",
    ),
    (
        "empty-nodes.onnx",
        lambda w: changed_graph(w, many_empty_nodes),
        "not an engine .an ONNX file., or a damaged one",
    ),
    ("structure.onnx", lambda w: changed_graph(w, much_text), "more structure than weights"),
    ("manifest.onnx", lambda w: changed_graph(w, long_manifest), "a manifest of 2 MiB"),
    ("deep.onnx", lambda w: changed_graph(w, deep_manifest), "nested too deeply"),
    ("large-bound.onnx", lambda w: changed_graph(w, large_bound), "the manifest is damaged"),
    (
        "nan.onnx",
        lambda w: changed_graph(w, not_a_number),
        "head.bias: NaN or infinite weights; export",
    ),
    ("weight.onnx", lambda w: changed_graph(w, other_weight), "do not belong together: export the"),
    ("bound.onnx", lambda w: changed_graph(w, less_bound), "do not belong together: export the"),
    ("operation.onnx", lambda w: changed_graph(w, other_operation), "runs other operations"),
    ("loop.onnx", lambda w: changed_graph(w, one_more_node), "runs other operations"),
    ("function.onnx", lambda w: changed_graph(w, a_function), "runs other operations"),
]


def assert_one_line(status: int, output: str, errors: str, expected: int, message: str) -> None:
    assert (status, output) == (expected, ""), errors
    assert errors.startswith("Error: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert re.search(message, errors), errors


@pytest.mark.parametrize(
    ("name", "make", "message"), MODEL_FILES, ids=[row[0] for row in MODEL_FILES]
)
@pytest.mark.parametrize("command", ["use", "inspect", "evaluate"])
def test_model_files_that_are_refused(
    run_cli: Cli,
    workshop: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    name: str,
    make: Callable[[Path], bytes | None],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    data, path = make(workshop), tmp_path / name
    if data is not None:
        path.write_bytes(data)
    use = ["export", path] if path.suffix == ".pt" else ["predict", image_folder, "--model", path]
    commands = {
        "use": use,
        "inspect": ["inspect", path],
        "evaluate": ["evaluate", path, image_folder],
    }
    assert_one_line(*run_cli(*commands[command]), 1, message)
    assert not (tmp_path / "this-must-never-exist").exists()


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        ("export", "model.onnx", "an engine already; type 'lipdeploy predict IMAGE --model {}'"),
        ("export", "cat-0000.jpg", "an image, not a model; .* type 'lipdeploy predict {}'"),
        ("inspect", "cat-0000.jpg", "an image, not a model; .* type 'lipdeploy predict {}'"),
    ],
)
def test_files_that_belong_to_another_command_name_it(
    run_cli: Cli, source: Path, command: str, name: str, message: str
) -> None:
    path = source / "samples" / name
    assert_one_line(*run_cli(command, path), 1, message.format(re.escape(str(path))))


ENGINES = [row[:2] for row in MODEL_FILES if row[0].endswith(".onnx")]


@pytest.mark.parametrize(("name", "make"), ENGINES, ids=[row[0] for row in ENGINES])
def test_engines_that_are_refused_fail_verification(
    run_cli: Cli,
    workshop: Path,
    tmp_path: Path,
    name: str,
    make: Callable[[Path], bytes | None],
) -> None:
    data, path = make(workshop), tmp_path / name
    if data is not None:
        path.write_bytes(data)
    status, output, errors = run_cli("verify", path)
    assert (status, errors) == (1, "")
    assert "FAILED" in output.splitlines()[-2] + output.splitlines()[-1]
    assert "train" not in output


# Datasets, output folders, options


@dataclass(frozen=True)
class Scene:
    """What the rows below work on."""

    folder: Path
    images: Path
    workshop: Path
    samples: Path

    def without(self, part: str, name: str) -> Path:
        """The dataset with the images of a class removed."""
        for path in (self.images / part / name).iterdir():
            path.unlink()
        return self.images

    def moved(self, part: str, name: str, other: str) -> Path:
        """The dataset with a class renamed; removed, where `other` is empty."""
        (self.images / part / name).rename(
            self.images / part / other if other else self.folder / name
        )
        return self.images

    def broken(self, part: str, name: str) -> Path:
        """The dataset with a text file among the images."""
        (self.images / part / name / "00.png").write_text("text")
        return self.images

    def file(self, name: str = "file") -> Path:
        """A file where a folder is needed, or none should be."""
        (self.folder / name).write_text("")
        return self.folder / name

    def newest(self) -> list[str]:
        """Nothing to type: a damaged engine that is the newest below ./runs."""
        (self.folder / "runs").mkdir()
        (self.folder / "runs" / "model.onnx").write_text("text")
        return []

    def copied(self, name: str) -> Path:
        """A file of the workshop that may be damaged."""
        (self.folder / name).write_bytes((self.workshop / name).read_bytes())
        return self.folder / name


COMMANDS: list[tuple[str, Callable[[Scene], list[object]], int, str]] = [
    (
        "dataset: mistyped",
        lambda s: ["train", "cifar01"],
        1,
        "cifar01: neither a folder nor one of cifar10, cifar100; did you mean cifar10",
    ),
    (
        "dataset: missing folder",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.folder / "none"],
        1,
        "none: neither a folder nor one of",
    ),
    (
        "dataset: no train folder",
        lambda s: ["train", s.samples],
        1,
        r"expected folders train/<class>/\* with images",
    ),
    (
        "dataset: no test folder",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.samples],
        1,
        r"expected folders test/<class>/\* with images",
    ),
    (
        "dataset: one class",
        lambda s: ["train", s.moved("train", "dark", "")],
        1,
        "found only the class folder 'bright', expected at least 2; make one folder",
    ),
    (
        "dataset: empty class",
        lambda s: ["train", s.without("train", "dark")],
        1,
        "dark: a class without images; add some or remove it",
    ),
    (
        "dataset: class in train and not in test",
        lambda s: ["train", s.moved("test", "dark", "")],
        1,
        "test: no images of dark, which .*train has; .*add a folder",
    ),
    (
        "dataset: class spelled otherwise in test",
        lambda s: ["train", s.moved("test", "dark", "dakr")],
        1,
        "train has no class 'dakr'; did you mean dark",
    ),
    (
        "dataset: other classes than the model",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.images],
        1,
        "the model has no class 'bright'; it knows ant, bee, cow",
    ),
    (
        "dataset: an image that cannot be read",
        lambda s: [(s.images / "train" / "dark" / "00.png").write_text("text"), "train", s.images][
            1:
        ],
        1,
        r"00\.png: not a readable image",
    ),
    (
        "size: too small to train",
        lambda s: ["train", s.images, "--image-size", "3"],
        2,
        "--image-size 3: must be at least 4",
    ),
    (
        "size: another than CIFAR's",
        lambda s: ["train", "cifar10", "--image-size", "64"],
        2,
        "leave out --image-size",
    ),
    (
        "output: a run below a file",
        lambda s: ["train", s.images, "--out", s.file() / "run"],
        1,
        "cannot be written .*give another place",
    ),
    (
        "output: an engine below a file",
        lambda s: ["export", s.workshop / "model.pt", "-o", s.file() / "a.onnx"],
        1,
        "cannot be written .*give another place",
    ),
    (
        "output: an engine over a folder",
        lambda s: ["export", s.workshop / "model.pt", "-o", s.images],
        1,
        "is a folder; give the name of a file",
    ),
    (
        "output: an engine over its model",
        lambda s: ["export", s.copied("model.pt"), "-o", s.folder / "model.pt"],
        2,
        "model.pt: is the model itself; give another name",
    ),
    (
        "output: a run over somebody's table",
        lambda s: ["train", s.images, "--out", s.file("metrics.csv").parent],
        2,
        "already holds metrics.csv.*choose another --out",
    ),
    (
        "output: a table on a full disk",
        lambda s: ["evaluate", s.samples / "model.onnx", s.folder / "own", "--csv", "/dev/full"],
        1,
        "/dev/full: cannot be written .No space left on device.*make room",
    ),
    (
        "output: a picture below a file",
        lambda s: [
            "evaluate",
            s.samples / "model.onnx",
            s.folder / "own",
            "--curve",
            s.file() / "a.png",
        ],
        1,
        "cannot be written .*give another place",
    ),
    (
        "usage: unknown command",
        lambda s: ["evaluat", "x"],
        2,
        "No such command 'evaluat'. Did you mean 'evaluate'.*see 'lipdeploy --help'",
    ),
    (
        "usage: unknown option",
        lambda s: ["export", "m.pt", "--engin", "onnx"],
        2,
        "No such option: --engin .*--engine.*see 'lipdeploy export --help'",
    ),
    (
        "usage: unknown engine",
        lambda s: ["export", s.workshop / "model.pt", "--engine", "onxx"],
        2,
        "--engine onxx: expected one of onnx, .*; did you mean onnx",
    ),
    (
        "usage: unknown head",
        lambda s: ["train", s.images, "--head", "mpl"],
        2,
        "--head mpl: expected one of linear, lln, mlp; did you mean mlp",
    ),
    (
        "usage: unknown device",
        lambda s: ["predict", s.samples, "--device", "cdua", "--model", s.workshop / "model.onnx"],
        2,
        "--device cdua: expected one of auto, cpu, cuda; did you mean cuda",
    ),
    (
        "usage: unknown device to train on",
        lambda s: ["train", s.images, "--device", "gpu"],
        2,
        "--device gpu: expected one of auto, cpu, cuda; did you mean cuda",
    ),
    (
        "train: a device that is not there",
        lambda s: ["train", s.images, "--device", "cuda:99"],
        1,
        r"--device cuda:99: torch \S+ (is a build without CUDA|has no usable GPU .*); use --device "
        "cpu, or (with an NVIDIA GPU pip uninstall -y torch && pip install torch|check nvidia-smi)",
    ),
    (
        "export: a text file",
        lambda s: ["export", s.file("notes.txt")],
        1,
        "notes.txt: not a trained model; give the model.pt .* an ONNX engine .*onnx",
    ),
    (
        "predict: an engine that nobody has named",
        lambda s: ["predict", "--quiet", s.samples, *s.newest()],
        1,
        "runs/model.onnx: not an engine .*make one with .*, or give another engine with --model",
    ),
    (
        "check-pair: an engine that nobody has named",
        lambda s: ["check-pair", "--quiet", "a.png", "b.png", *s.newest()],
        1,
        "runs/model.onnx: not an engine .*make one with .*, or give another engine with --model",
    ),
    ("usage: no image", lambda s: ["predict"], 2, "Missing argument 'images'.*predict --help"),
    (
        "usage: no number",
        lambda s: ["train", s.images, "--epochs", "many"],
        2,
        "Invalid value for '--epochs'.*valid integer.*train --help",
    ),
    (
        "usage: workers below none",
        lambda s: ["train", s.images, "--workers", "-1"],
        2,
        "--workers -1: must be 0 .one a core. or more",
    ),
    (
        "usage: no radius",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.images, "--radii", "36/255,much"],
        2,
        "--radii much: expected a number or a fraction, as 36/255",
    ),
    ("usage: nothing to measure", lambda s: ["benchmark"], 2, "Missing argument.*benchmark --help"),
    (
        "usage: batches of nothing",
        lambda s: ["benchmark", s.workshop / "model.onnx", "--batch", "8,0"],
        2,
        "--batch 8,0: must be at least 1",
    ),
    (
        "usage: no batch",
        lambda s: ["benchmark", s.workshop / "model.onnx", "--batch", "1;8"],
        2,
        "--batch 1;8: expected whole numbers, separated by commas, as 1,8,64",
    ),
    (
        "usage: no time to measure",
        lambda s: ["benchmark", s.workshop / "model.onnx", "--seconds", "nan"],
        2,
        "--seconds nan: must be more than 0",
    ),
    (
        "usage: a limit of no images",
        lambda s: ["benchmark", s.workshop / "model.onnx", "--limit", "5"],
        2,
        "--limit says how to compare answers; add --data, or leave it out",
    ),
    (
        "benchmark: one of the files is missing",
        lambda s: ["benchmark", s.workshop / "model.onnx", "gone.onnx", "--seconds", "0.01"],
        1,
        "gone.onnx: no such file; expected an engine",
    ),
    (
        "benchmark: a picture",
        lambda s: ["benchmark", s.samples / "cat-0000.jpg"],
        1,
        "cat-0000.jpg: not an engine .an ONNX file., or a damaged one",
    ),
    (
        "benchmark: other classes than the images",
        lambda s: ["benchmark", s.workshop / "model.onnx", "--data", s.images],
        1,
        "the model has no class 'bright'; it knows ant, bee, cow",
    ),
    (
        "benchmark: no dataset",
        lambda s: ["benchmark", s.workshop / "model.onnx", "--data", "cifar"],
        1,
        "cifar: neither a folder nor one of cifar10, cifar100; did you mean cifar10",
    ),
    (
        "usage: no limit",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.images, "--limit", "0"],
        2,
        "--limit 0: must be at least 1",
    ),
]


@pytest.mark.parametrize(
    ("name", "arguments", "status", "message"), COMMANDS, ids=[row[0] for row in COMMANDS]
)
@pytest.mark.usefixtures("cache")
def test_commands_that_are_refused(
    run_cli: Cli,
    source: Path,
    workshop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: Callable[[Scene], list[object]],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    samples = source / "samples"
    own_test_set(tmp_path / "own", samples)
    images = write_image_folder(tmp_path / "tiny", side=8, count=3)
    scene = Scene(tmp_path, images, workshop, samples)
    command = arguments(scene)
    before = listing(tmp_path)
    found, output, errors = run_cli(*command)
    assert_one_line(found, output, errors.removeprefix("\n"), status, message)
    assert before <= listing(tmp_path), "something was lost"


def listing(folder: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


# Full disks, with the kernel's own limit on the size of a file


def run_with_small_files(limit: int, *arguments: str | Path) -> tuple[int, str, str]:
    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    finished = subprocess.run(
        [sys.executable, "-m", "lipdeploy", *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=restrict,
        check=False,
    )
    return finished.returncode, finished.stdout, finished.stderr


def test_a_disk_that_fills_up_while_exporting_keeps_the_old_engine(
    workshop: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"the old one")
    arguments = ["export", workshop / "model.pt", "-o", tmp_path / "model.onnx"]
    status, _, errors = run_with_small_files(4096, *arguments)
    message = errors.splitlines()[-1]
    assert status == 1
    assert f"model.onnx: cannot be written ({os.strerror(errno.EFBIG)}); make room" in message
    assert "Traceback" not in errors
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx"}
    assert (tmp_path / "model.onnx").read_bytes() == b"the old one"


@pytest.mark.usefixtures("cache")
def test_a_disk_that_is_full_when_training_begins_is_told_at_once(
    image_folder: Path, tmp_path: Path
) -> None:
    train = ["train", image_folder, "--out", tmp_path / "run", "--workers", "1", "--width", "4"]
    status, _, errors = run_with_small_files(20_000, *train)
    assert (status, "cannot be written" in errors) == (1, True)
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.usefixtures("cache")
def test_a_disk_that_fills_up_while_training_keeps_the_last_checkpoint(
    run_cli: Cli, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls, flush = tmp_path / "run", iter(range(1000)), os.fsync

    def full(descriptor: int) -> None:
        if next(calls) > 8:  # two files and their folder, at the start and after each epoch
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    train = ["train", image_folder, "--out", out, "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, _, errors = run_cli(*train, "--width", "4", "--epochs", "4", "--batch", "6")
    message = errors.splitlines()[-1] + "\n"
    assert_one_line(
        status, "", message, 1, "cannot be written .No space left on device.; make room"
    )
    held = read_checkpoint(out, ignore).state.finished_epochs
    assert 0 < held < 4
    assert run_cli(*train, "--resume")[0] == 0
    assert load_model(out / "model.pt").card.epochs == 4
