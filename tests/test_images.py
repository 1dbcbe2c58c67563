import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lipdeploy import images
from lipdeploy.bounds import up
from lipdeploy.errors import ImageError
from lipdeploy.images import decode, network_input
from lipdeploy.resize import linear_resize, resize_matrix


def picture(width: int = 6, height: int = 4, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_paths_bytes_pil_images_and_arrays_give_the_same_pixels(tmp_path: Path) -> None:
    image = picture()
    data, path, array = encoded(image), tmp_path / "a.png", np.asarray(image)
    path.write_bytes(data)
    for source in (data, path, str(path), image, array):
        decoded = decode(source)
        assert np.array_equal(decoded.pixels, array)
        assert decoded.file_norm == 1


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK"])
def test_modes_become_rgb_and_only_grey_is_linear(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    decoded = decode(encoded(picture(mode=mode), kind))
    assert decoded.pixels.shape == (4, 6, 3)
    assert decoded.file_norm == (up(3**0.5) if mode == "L" else None)


def test_a_grey_level_moves_three_values() -> None:
    """Else the integer budget of a grey file would be three times too large."""
    grey = np.array(picture(8, 8, "L"))
    moved = grey.copy()
    moved[0, 0] ^= 1
    before, after = (network_input(encoded(Image.fromarray(g)), 8) for g in (grey, moved))
    assert before.resize_norm_upper is not None
    assert np.linalg.norm(before.pixels - after.pixels) <= before.resize_norm_upper
    assert np.linalg.norm(before.pixels - after.pixels) > 1.7


def raw_png(depth: int, colour: int, width: int, row: bytes) -> bytes:
    """A PNG of one row in a depth that Pillow does not write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    rows = zlib.compress(b"\0" + row)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(
    "data",
    [
        raw_png(16, 2, 2, bytes(range(12))),
        raw_png(4, 0, 2, b"\x3c"),
        raw_png(2, 0, 4, b"\x1b"),
        b"P6 2 1 15\n" + bytes(range(6)),
    ],
    ids=["16-bit colour", "4-bit grey", "2-bit grey", "maxval 15"],
)
def test_files_of_other_depths_have_no_radius_of_their_own(data: bytes) -> None:
    assert decode(data).file_norm is None


def test_a_damaged_exif_block_does_not_make_a_good_picture_bad() -> None:
    data = encoded(picture(16, 16), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x00broken")
    assert decode(data).pixels.shape == (16, 16, 3)


def test_a_truncated_pil_image_is_refused_like_its_bytes() -> None:
    image = Image.open(io.BytesIO(encoded(picture(64, 64), "JPEG")[:-300]))
    with pytest.raises(ImageError, match="not a readable image"):
        decode(image)


def test_orientation_is_applied() -> None:
    image = picture(6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(image, exif=exif)).pixels.shape == (6, 4, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable image"),
        (b"hello, I am text", "not a readable image"),
        (encoded(picture(64, 64), "JPEG")[:-300], "not a readable image"),
        (encoded(Image.new("I;16", (4, 4))), "16"),
    ],
    ids=["empty", "text", "truncated", "16-bit"],
)
def test_what_is_no_image_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


def test_a_film_behind_a_jpeg_does_not_matter() -> None:
    """Phones append one to a photograph; in its bytes the marker of a scan is frequent."""
    data = encoded(picture(64, 64), "JPEG", progressive=True)
    film = np.random.default_rng(0).integers(0, 256, 20_000_000, dtype=np.uint8).tobytes()
    assert film.count(b"\xff\xda") > 200
    assert np.array_equal(decode(data + film).pixels, decode(data).pixels)


def test_large_images_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(40, 40))
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="40 x 40 pixels, limit"):
        decode(data)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        decode(tmp_path / "none.png")
    with pytest.raises(ImageError, match="a directory without images"):
        decode(tmp_path)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), "u1")]
)
def test_arrays_of_another_kind_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="expected uint8"):
        decode(array)


@settings(max_examples=50)
@given(st.integers(1, 80), st.integers(1, 40))
def test_resizing_averages(source: int, target: int) -> None:
    matrix = resize_matrix(source, target)
    assert matrix.shape == (target, source)
    assert np.all(matrix >= 0)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)


def test_resizing_to_the_same_size_changes_nothing() -> None:
    assert np.array_equal(resize_matrix(7, 7), np.eye(7))


@settings(max_examples=30)
@given(st.integers(4, 60), st.integers(4, 60), st.integers(4, 16))
def test_the_norm_of_the_resize_is_that_of_its_matrix(height: int, width: int, size: int) -> None:
    resize = linear_resize(height, width, size)
    truth = np.linalg.norm(np.kron(resize.rows, resize.columns), 2)
    assert truth <= resize.norm_upper * (1 + 1e-14)
    assert resize.norm_upper <= truth * (1 + 1e-9)
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    moved = np.linalg.norm(resize(a) - resize(b))
    assert moved <= resize.norm_upper * np.linalg.norm(a.astype(float) - b)


def test_the_crop_is_the_centre() -> None:
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 200
    assert np.array_equal(linear_resize(4, 12, 4)(pixels), np.full((3, 4, 4), 200.0))


def test_extreme_shapes_are_refused() -> None:
    with pytest.raises(ImageError, match="more than 100 times"):
        linear_resize(5, 501, 8)


@settings(max_examples=20)
@given(st.integers(4, 50), st.integers(4, 50), st.integers(0, 1000))
def test_the_input_error_contains_the_rounding(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    given_input = network_input(pixels, 8)
    resize = linear_resize(height, width, 8)
    planes = pixels.transpose(2, 0, 1).astype(np.longdouble)
    exact = resize.rows.astype(np.longdouble) @ planes @ resize.columns.astype(np.longdouble).T
    assert np.linalg.norm((given_input.pixels - exact).astype(float)) <= given_input.error_upper
    if (height, width) == (8, 8):
        assert given_input.error_upper == 0
