"""Images that are refused, unusual ones that are accepted, and what is no image."""

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

Cli = Callable[..., tuple[int, str, str]]


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
