"""One linear resize-and-crop, used in training and prediction, and its norm."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from lipdeploy.bounds import norm_upper
from lipdeploy.errors import ImageError

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Bands = list[tuple[int, Array]]
MIN_SIDE = 4


def resize_matrix(source: int, target: int) -> Array:
    """Antialiased linear interpolation of one axis, shape (target, source), rows summing to 1.

    A triangle filter, as wide as the reduction when the axis shrinks; the identity when the sizes
    agree.
    """
    scale = source / target
    reach = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale - 0.5
    weights = np.maximum(0.0, 1 - np.abs(np.arange(source) - centres[:, None]) / reach)
    matrix: Array = weights / weights.sum(axis=1, keepdims=True)
    return matrix


@dataclass(frozen=True)
class LinearResize:
    """Resize the shorter side to `size`, crop the centre: one linear map x -> rows x columns^T.

    Attributes:
        rows: shape (size, height).
        columns: shape (size, width).
        norm_upper: upper bound of the l2 norm of the map.
    """

    rows: Array
    columns: Array
    norm_upper: float

    @property
    def is_identity(self) -> bool:
        """Whether the image already has the right size."""
        return self.rows.shape == self.columns.shape == (len(self.rows),) * 2

    def __call__(self, pixels: Pixels) -> Array:
        """Map (height, width, 3) to (3, size, size), both 0 ... 255, in float64."""
        if self.is_identity:
            return pixels.transpose(2, 0, 1).astype(np.float64)
        half = _along_first_axis(self._row_bands, pixels)
        return _along_first_axis(self._column_bands, half.swapaxes(0, 1)).transpose(2, 1, 0)

    @cached_property
    def _row_bands(self) -> Bands:
        return _bands(self.rows)

    @cached_property
    def _column_bands(self) -> Bands:
        return _bands(self.columns)


def _bands(matrix: Array) -> Bands:
    """Where the non-zero part of each row begins, and this part."""
    spans = [np.flatnonzero(row) for row in matrix]
    return [
        (int(span[0]), row[span[0] : span[-1] + 1]) for span, row in zip(spans, matrix, strict=True)
    ]


def _along_first_axis(bands: Bands, values: Array | Pixels) -> Array:
    """The matrix with these bands times `values`, shape (source, other, 3).

    Not as a product of matrices: nearly all weights are 0, a photograph in float64 takes eight
    times its size, and numpy's products have threads that would fight with those that decode.
    """
    return np.stack(
        [
            np.einsum("h,hwc->wc", row, values[start : start + len(row)].astype(np.float64))
            for start, row in bands
        ]
    )


@lru_cache(maxsize=256)
def linear_resize(height: int, width: int, size: int) -> LinearResize:
    """The map for images of height x width pixels; raises ImageError for extreme shapes."""
    shorter, longer = sorted((height, width))
    if shorter < MIN_SIDE:
        raise ImageError(
            f"{width} x {height} pixels, expected at least {MIN_SIDE} on each side; give the "
            "picture itself, not a thumbnail"
        )
    if longer > 100 * shorter:
        raise ImageError(
            f"{width} x {height} pixels: the sides differ by more than 100 times; cut out a part"
        )
    if height == width == size:
        identity = np.eye(size)
        return LinearResize(identity, identity, 1.0)
    rows = _cropped(height, shorter, size)
    columns = _cropped(width, shorter, size)
    # The norm of a Kronecker product is the product of the norms; one rounding, upwards.
    norm = np.nextafter(norm_upper(rows) * norm_upper(columns), np.inf)
    return LinearResize(rows, columns, float(norm))


def _cropped(side: int, shorter: int, size: int) -> Array:
    target = max(size, round(side * size / shorter))
    start = (target - size) // 2
    return resize_matrix(side, target)[start : start + size]
