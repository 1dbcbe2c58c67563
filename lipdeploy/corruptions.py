"""Common corruptions of an image of 8 bits: noise, blur, light, compression.

Nine of those in Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019), in five severities with the constants of the paper's
script for CIFAR-10-C (make_cifar_c.py), whose images have 32 x 32 pixels. For other sizes lengths
in pixels (those of both blurs) grow with the image; noise is that of each pixel, JPEG has its
blocks of 8 x 8, and the other constants are no lengths. Results are rounded to the nearest of 256
levels, where the script cuts.
"""

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from lipdeploy.images import decode
from lipdeploy.resize import Pixels

Values = NDArray[np.floating[Any]]

CIFAR_SIZE = 32
"""Pixels on a side of the images that lengths are given for."""
REACH = 4
"""Kernels are cut at so many standard deviations."""
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        strengths: the constant of each severity, from 1 on.
        apply: takes pixels, shape (n, n, 3), a constant and random numbers; gives values of the
            same shape that need not be whole or within 0 ... 255.
    """

    strengths: tuple[float, ...]
    apply: Callable[[Pixels, float, Generator], Values | Pixels]

    def __call__(self, pixels: Pixels, strength: float, generator: Generator) -> Pixels:
        """Corrupted pixels, shape (n, n, 3), uint8."""
        values = np.rint(self.apply(pixels, strength, generator))
        return np.clip(values, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Way:
    """A corruption in one severity.

    Attributes:
        name: of the corruption, a key of `CORRUPTIONS`; "none" for the image as it is.
        severity: 1 to 5; 0 for the image as it is.
    """

    name: str
    severity: int


UNCHANGED = Way("none", 0)


def corrupted(pixels: Pixels, way: Way, seed: int) -> Pixels:
    """An image in one way, shape (n, n, 3), uint8.

    The random numbers depend on seed, corruption and the pixels alone: an image gets the same ones
    wherever it stands. At a higher severity Gaussian noise is the same, made larger; impulses are
    the same and more; motion has the same angle; photons are counted anew.

    Args:
        pixels: square, shape (n, n, 3).
        way: which corruption; `UNCHANGED` gives the image itself.
        seed: any whole number.
    """
    if way == UNCHANGED:
        return pixels
    corruption = CORRUPTIONS[way.name]
    state = hashlib.sha256(f"{seed} {way.name} {pixels.shape}\n".encode() + pixels.tobytes())
    generator = np.random.default_rng(int.from_bytes(state.digest()))
    return corruption(pixels, corruption.strengths[way.severity - 1], generator)


def _gaussian_noise(pixels: Pixels, deviation: float, generator: Generator) -> Values:
    return pixels + 255 * deviation * generator.standard_normal(pixels.shape)


def _shot_noise(pixels: Pixels, photons: float, generator: Generator) -> Values:
    """Counts of photons, so many on average where a value is 255."""
    return generator.poisson(pixels / 255 * photons) * (255 / photons)


def _impulse_noise(pixels: Pixels, share: float, generator: Generator) -> Values:
    """About this share of the values becomes 0 or 255, either with the same chance."""
    # Two draws: with one, an impulse would turn from 255 to 0 as the share grows.
    is_hit = generator.random(pixels.shape) < share
    extremes = 255 * generator.integers(0, 2, pixels.shape)
    return np.where(is_hit, extremes, pixels).astype(np.float64)


def _gaussian_blur(pixels: Pixels, deviation: float, _: Generator) -> Values:
    """Weighted means of rows, then of columns; the pixels at the edge go on beyond it."""
    size = len(pixels)
    offsets, weights = _gaussian(deviation * size / CIFAR_SIZE)
    offsets = np.concatenate([-offsets[:0:-1], offsets])
    weights = np.concatenate([weights[:0:-1], weights])
    nearest = np.clip(np.arange(size)[:, None] + offsets, 0, size - 1)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], nearest), weights / weights.sum())
    # Not as products of matrices: their threads would fight with those of the engine.
    half = np.einsum("ih,hwc->iwc", matrix, pixels)
    blurred: Values = np.einsum("jw,iwc->ijc", matrix, half)
    return blurred


def _motion_blur(pixels: Pixels, deviation: float, generator: Generator) -> Values:
    """One half of a Gaussian along a line within 45 degrees of the horizontal.

    As ImageMagick does it: at the nearest pixels of the points one pixel apart on that line.
    """
    size = len(pixels)
    steps, weights = _gaussian(deviation * size / CIFAR_SIZE)
    angle = math.radians(generator.uniform(-45, 45))
    values = np.zeros(pixels.shape)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        rows = np.clip(np.arange(size) + round(step * math.sin(angle)), 0, size - 1)
        columns = np.clip(np.arange(size) + round(step * math.cos(angle)), 0, size - 1)
        values += weight * pixels[rows[:, None], columns]
    return values


def _gaussian(deviation: float) -> tuple[NDArray[np.int64], Values]:
    """Whole offsets from 0 on, and the Gaussian there, which is 1 at 0."""
    offsets = np.arange(int(REACH * deviation + 0.5) + 1)
    return offsets, np.exp(-(offsets**2) / (2 * deviation**2))


def _brightness(pixels: Pixels, added: float, _: Generator) -> Values:
    """More of the value V of hue, saturation and value; at most 1.

    Colours are V times a function of the other two, so what they are multiplied by is new V by old
    V; black has no hue and becomes grey.
    """
    value = pixels.max(axis=2, keepdims=True).astype(np.float64)
    brighter = np.minimum(value + 255 * added, 255)
    scaled: Values = pixels * (brighter / np.maximum(value, 1))
    return np.where(value > 0, scaled, brighter)


def _contrast(pixels: Pixels, factor: float, _: Generator) -> Values:
    """Differences from each colour's mean times a factor."""
    means: Values = pixels.mean(axis=(0, 1))
    return (pixels - means) * factor + means


def _pixelate(pixels: Pixels, scale: float, _: Generator) -> Pixels:
    """Fewer pixels, means of areas, and as many as before again."""
    size = len(pixels)
    few = max(1, int(size * scale))
    small = Image.fromarray(pixels).resize((few, few), Image.Resampling.BOX)
    return np.asarray(small.resize((size, size), Image.Resampling.BOX))


def _jpeg_compression(pixels: Pixels, quality: float, _: Generator) -> Pixels:
    """Through the codec that Pillow has."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=int(quality))
    return decode(stream.getvalue()).pixels


CORRUPTIONS = {
    "gaussian_noise": Corruption((0.04, 0.06, 0.08, 0.09, 0.10), _gaussian_noise),
    "shot_noise": Corruption((500, 250, 100, 75, 50), _shot_noise),
    "impulse_noise": Corruption((0.01, 0.02, 0.03, 0.05, 0.07), _impulse_noise),
    "gaussian_blur": Corruption((0.4, 0.6, 0.7, 0.8, 1.0), _gaussian_blur),
    # The script also gives radii of 6, 6, 6, 8 and 9 pixels, of which ImageMagick makes kernels of
    # 2 * radius + 1 (GetOptimalKernelWidth1D, GetMotionBlurKernel). What these have beyond REACH
    # standard deviations is less than 1 / 40,000 of their sum.
    "motion_blur": Corruption((1, 1.5, 2, 2, 2.5), _motion_blur),
    "brightness": Corruption((0.05, 0.1, 0.15, 0.2, 0.3), _brightness),
    "contrast": Corruption((0.75, 0.5, 0.4, 0.3, 0.15), _contrast),
    "pixelate": Corruption((0.95, 0.9, 0.85, 0.75, 0.65), _pixelate),
    "jpeg_compression": Corruption((80, 65, 58, 50, 40), _jpeg_compression),
}
"""By the names that CIFAR-10-C gives them."""
