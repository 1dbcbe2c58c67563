"""Safe decoding of image files, and what the network gets of them.

Decoding lies outside the guarantee. What follows it is a linear map with a known norm, so a radius
around the network's input becomes a radius around the decoded image.
"""

import io
import logging
import re
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lipdeploy.bounds import frobenius_upper, gamma, up
from lipdeploy.errors import ImageError, one_line
from lipdeploy.quiet import QuietPillow
from lipdeploy.resize import Pixels, linear_resize


class StoredImage(ABC):
    """An encoded image inside of a larger file, read anew whenever it is needed.

    Any thread may read it.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The larger file, and where in it."""

    @abstractmethod
    def read(self) -> bytes:
        """The image as it is stored, at most `MAX_FILE_BYTES`.

        Raises:
            ImageError: if it cannot be read.
        """


ImageSource = str | Path | bytes | StoredImage | Image.Image | Pixels

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    [
        ".bmp",
        ".gif",
        ".jfif",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".ppm",
        ".pnm",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
MODEL_SUFFIXES = {
    ".onnx": "an engine, not an image; type 'lipdeploy predict IMAGE --model {}'",
    ".pt": "a trained model, not an image; type 'lipdeploy export {}', and give the file that it "
    "writes as --model",
}
"""What to say of a file that is no image, by its suffix."""
PREPROCESSING = {
    "range": "0..255",
    "resize": "shorter side to the network's size, triangle filter, antialiased",
    "crop": "centre",
}
"""The one rule from decoded pixels to network input; kept in models and engines."""

# What Pillow has to say of an image comes as an exception; it must not print it as well.
logging.getLogger("PIL").addHandler(logging.NullHandler())
QUIET_PILLOW = QuietPillow()
ONE_AT_A_TIME = threading.Lock()
"""For images that somebody else opened: two threads may be given the same one, or the same file."""

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
"""Begins a segment with a length, or ends the picture."""
MAX_SCANS = 100
"""Ordinary progressive files have about ten."""

MAX_PIXELS = 50_000_000
MAX_FILE_BYTES = 200 << 20
MODES = frozenset({"1", "L", "P", "RGB", "LA", "PA", "RGBA", "CMYK", "YCbCr"})
FILE_NORMS = {"RGB": 1.0, "L": up(3**0.5)}
"""Norm of the map from a file's pixels to RGB, for the modes where it is linear: a grey level moves
three values."""


@dataclass(frozen=True)
class DecodedImage:
    """An RGB image.

    Attributes:
        pixels: shape (height, width, 3), uint8, EXIF orientation applied.
        file_norm: norm of the linear map from the file's 8-bit pixels to these; None where they
            are not linear in the file's (palette, CMYK, alpha) or the file's have not 8 bits, and
            there is no radius in the file's pixels.
    """

    pixels: Pixels
    file_norm: float | None


def name_of(source: ImageSource) -> str | None:
    """Where an image is; None for one in memory."""
    if isinstance(source, StoredImage):
        return source.name
    return str(source) if isinstance(source, str | Path) else None


def decode(source: ImageSource) -> DecodedImage:
    """Decode an encoded image, a PIL image or a uint8 array of shape (height, width, 3).

    Raises:
        ImageError: if it cannot be decoded, is too large, or is of an unsupported kind.
    """
    if isinstance(source, np.ndarray):
        return DecodedImage(_checked_array(source), file_norm=1.0)
    with QUIET_PILLOW:
        try:
            if isinstance(source, Image.Image):
                with ONE_AT_A_TIME:
                    return _to_rgb(source)
            data = encoded(source)
            _check_scans(data)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _to_rgb(image)
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise ImageError(_not_an_image(source)) from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ImageError(
                f"more than {MAX_PIXELS / 1e6:.0f} million pixels; make it smaller"
            ) from error
        # Pillow's plugins raise many kinds of errors on hostile bytes; all mean the same here.
        except Exception as error:
            raise ImageError(f"not a readable image ({one_line(error)})") from error


def _check_scans(data: bytes) -> None:
    """Refuse a progressive JPEG of very many scans: decoding takes time for each."""
    if data.startswith(JPEG_START) and _scans(data) > MAX_SCANS:
        raise ImageError(f"a JPEG of more than {MAX_SCANS} scans; save it again")


def _scans(data: bytes) -> int:
    """Scans up to the end of the picture, or just above the limit; files may go on behind it."""
    position, count = len(JPEG_START), 0
    while count <= MAX_SCANS:
        marker = JPEG_MARKER.search(data, position)
        if marker is None or marker[0] == JPEG_END:
            break
        count += marker[0] == JPEG_SCAN
        start = marker.end()
        position = start + int.from_bytes(data[start : start + 2])
    return count


def _not_an_image(source: ImageSource) -> str:
    suffix = Path(source).suffix.lower() if isinstance(source, str | Path) else ""
    if suffix in MODEL_SUFFIXES:
        return MODEL_SUFFIXES[suffix].format(source)
    return f"not a readable image (none of {', '.join(FORMATS)})"


def encoded(source: str | Path | bytes | StoredImage) -> bytes:
    """An image as it is stored.

    Raises:
        ImageError: if it cannot be read, or is too large.
    """
    if isinstance(source, bytes):
        return source
    return source.read() if isinstance(source, StoredImage) else _read(Path(source))


def check_bytes(count: int) -> None:
    """Raise ImageError where an encoded image is too large to read."""
    if count > MAX_FILE_BYTES:
        raise ImageError(f"file is larger than {MAX_FILE_BYTES >> 20} MiB")


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ImageError(_no_file(path))
        check_bytes(path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error


def _no_file(path: Path) -> str:
    if not path.is_dir():
        return "no such file, and nothing that matches it; give the path of an image"
    if any(inner.suffix.lower() in SUFFIXES for inner in path.rglob("*")):
        return "a directory; give its images one by one"
    return f"a directory without images; expected {' '.join(sorted(SUFFIXES))}"


def _checked_array(array: NDArray[Any]) -> Pixels:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            f"array of {array.dtype} with shape {array.shape}; expected uint8 (height, width, 3)"
        )
    return array


def _to_rgb(image: Image.Image) -> DecodedImage:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{width} x {height} pixels, limit {MAX_PIXELS / 1e6:.0f} million; make it smaller"
        )
    if image.mode not in MODES:
        raise ImageError(f"pixel mode {image.mode!r} is not supported; save it as 8-bit RGB")
    has_alpha = image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info
    is_plain = not has_alpha and _has_8_bits(image)
    file_norm = FILE_NORMS.get(image.mode) if is_plain else None
    image = ImageOps.exif_transpose(image)
    if has_alpha:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return DecodedImage(np.array(image.convert("RGB"), dtype=np.uint8), file_norm)


def _has_8_bits(image: Image.Image) -> bool:
    """Whether the decoder takes the file's values as they are; others it would scale or cut.

    Pillow's raw modes name every conversion after a semicolon: "L;4", "RGB;16B", "L;I".
    """
    tiles = getattr(image, "tile", [])
    return not any(";" in str(tile[3]) or tile[0].startswith("ppm") for tile in tiles)


@dataclass(frozen=True)
class NetworkInput:
    """What the network gets for one image.

    Attributes:
        pixels: shape (3, size, size), float32, 0 ... 255.
        error_upper: bound of the l2 distance, in the same units, between `pixels` and the exact
            linear image of the decoded pixels, for every image of this one's height and width; 0
            where the size was right.
        resize_norm_upper: norm of the linear map from the file's pixels to `pixels`; None where
            there is none.
    """

    pixels: NDArray[np.float32]
    error_upper: float
    resize_norm_upper: float | None


def network_input(source: ImageSource, size: int) -> NetworkInput:
    """Decode and resize one image.

    The error is that of rounding to float32 (2**-24 of each entry, which is a weighted mean of
    numbers up to 255) and of the two float64 products, whose sums are as long as the image is high
    and wide.

    Raises:
        ImageError: as `decode` and `linear_resize`.
    """
    image = decode(source)
    height, width = image.pixels.shape[:2]
    resize = linear_resize(height, width, size)
    exact = resize(image.pixels)
    norm = None if image.file_norm is None else up(resize.norm_upper * image.file_norm)
    pixels = exact.astype(np.float32)
    if resize.is_identity:
        return NetworkInput(pixels, 0.0, norm)
    size_after = up(255 * up(exact.size**0.5)) * (1 + 1e-9)
    size_before = up(255 * up(image.pixels.size**0.5))
    weights = float(frobenius_upper(resize.rows) * frobenius_upper(resize.columns))
    products = gamma(height + width + 4) * weights * size_before
    error = (2.0**-24 * size_after + products) * (1 + 1e-6) + 1e-30
    return NetworkInput(pixels, error, norm)
