"""From a skew kernel to an operator of tiles: its exponential, trimmed to few taps.

exp(A) has taps everywhere, but they decay like the terms of the series. Dropping the small ones is
a change of function, which is bounded here; certificates are proven from what is left.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lipdeploy.errors import FreezeError
from lipdeploy.exporters.plan import TILE, LayerShape
from lipdeploy.fourier import RealFourier, symbol_factors
from lipdeploy.spectral import SpectralConv
from lipdeploy.taylor import exponential_remainder_upper
from lipdeploy.tiled import TiledConv

Array = NDArray[np.float64]

KERNEL_GRID = 64
"""Side of the grid on which the exponential is computed."""

TOLERANCE = 1e-5
"""Largest norm of what may be dropped of an exponential."""


@dataclass(frozen=True, eq=False)
class ExponentialKernel:
    """The exponential of a skew convolution, frequency by frequency in float64.

    Attributes:
        taps: the skew kernel, shape (k*k, c, c), axes (tap, output, input).
        out_channels: outputs that are wanted.
        in_channels: inputs that there are.
        side: of the circular grid on which it is computed.
    """

    taps: Array
    out_channels: int
    in_channels: int
    side: int = KERNEL_GRID

    @property
    def reach(self) -> int:
        """Points that the skew kernel reaches from its middle."""
        return math.isqrt(len(self.taps)) // 2

    @cached_property
    def _spectrum(self) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
        """Eigenvalues of A / i and eigenvectors, at half of the frequencies."""
        symbols = np.fft.rfft2(_placed(self.taps, self.side), axes=(0, 1))
        values, vectors = np.linalg.eigh(-1j * symbols)
        return values, vectors

    @cached_property
    def skew_norm(self) -> float:
        """Largest ||A(f)|| over the frequencies."""
        return float(np.abs(self._spectrum[0]).max())

    @cached_property
    def symbols(self) -> NDArray[np.complex128]:
        """exp(A(f)), shape (side, side // 2 + 1, c_out, c_in)."""
        values, vectors = self._spectrum
        turned = np.exp(1j * values)[..., None, :] * vectors
        rotations = turned @ np.swapaxes(vectors.conj(), -1, -2)
        kept: NDArray[np.complex128] = rotations[..., : self.out_channels, : self.in_channels]
        return kept

    def trimmed(self, kernel_size: int) -> Array:
        """Its taps in the middle, shape (kernel_size**2, c_out, c_in)."""
        kernel = np.fft.irfft2(self.symbols, s=(self.side, self.side), axes=(0, 1))
        places = np.arange(kernel_size) - kernel_size // 2
        middle = kernel[places[:, None] % self.side, places % self.side]
        return np.ascontiguousarray(middle.reshape(kernel_size**2, *kernel.shape[2:]))

    def dropped_upper(self, trimmed: Array) -> float:
        """Bound of ||exp(A(f)) - K(f)|| for all frequencies f, K the trimmed kernel; in float64.

        For any n the difference is a trigonometric polynomial, the series to degree n less K, and
        a remainder R of at most ||A||^(n+1) / (n+1)!. If e is the largest difference on the grid,
        the polynomial is at most e + R there, and at most (e + R) / cos(pi m / side)^2 everywhere,
        m < side / 2 being its degree in each angle (see `lipdeploy.tiled.kernel_norm_upper`). The
        best n counts. Not a part of any certificate, which is proven from stored weights.
        """
        placed = np.fft.rfft2(_placed(trimmed, self.side), axes=(0, 1))
        difference = self.symbols - placed
        gram = np.swapaxes(difference.conj(), -1, -2) @ difference
        largest = math.sqrt(max(float(np.linalg.eigvalsh(gram).max()), 0.0))
        bounds = [math.inf]
        for degree in range(1, (self.side - 1) // (2 * self.reach) + 1):
            reached = max(degree * self.reach, math.isqrt(len(trimmed)) // 2)
            rest = exponential_remainder_upper(self.skew_norm, degree)
            factor = math.cos(math.pi * reached / self.side) ** -2
            bounds.append((largest + rest) * factor + rest)
        return min(bounds)


def _placed(taps: Array, side: int) -> Array:
    """Taps on a circular grid, shape (side, side, c_out, c_in), the middle one at (0, 0)."""
    k = math.isqrt(len(taps))
    grid = np.zeros((side, side, *taps.shape[1:]))
    places = np.arange(k) - k // 2
    grid[places[:, None], places] = taps.reshape(k, k, *taps.shape[1:])
    return grid


def trim(kernel: ExponentialKernel, tile: int, tolerance: float) -> tuple[Array, float]:
    """The fewest taps of which at most `tolerance` is dropped, and a bound of what is.

    Returns:
        Taps of shape (k*k, c_out, c_in), k odd and at most tile // 2 + 1, and the bound.

    Raises:
        FreezeError: if so few taps are not enough.
    """
    dropped = math.inf
    for size in range(3, tile // 2 + 2, 2):
        taps = kernel.trimmed(size)
        dropped = kernel.dropped_upper(taps)
        if dropped <= tolerance:
            return taps, dropped
    raise FreezeError(
        f"the exponential of a skew convolution of norm {kernel.skew_norm:.3g} does not fit into "
        f"tiles of {tile} x {tile}: of {size} x {size} taps up to {dropped:.1e} is missing, limit "
        f"{tolerance:g}; use --form spectral, or train again with a smaller image size"
    )


def tiled_conv(
    taps: Array, shape: LayerShape, tile: int = TILE, tolerance: float = TOLERANCE
) -> TiledConv:
    """The exponential of a circular skew kernel on a large grid, trimmed, tile by tile.

    Args:
        taps: the skew kernel, shape (k*k, c, c).
        shape: of the layer.
        tile: side of a tile.
        tolerance: largest norm of what is dropped.

    Raises:
        FreezeError: as `trim`.
    """
    kernel = ExponentialKernel(taps, shape.out_channels, shape.in_channels)
    trimmed, _ = trim(kernel, tile, tolerance)
    return TiledConv(shape.grid, math.isqrt(len(trimmed)), convolution(trimmed, tile))


def convolution(taps: Array, grid: int) -> SpectralConv:
    """The circular convolution with these taps, shape (k*k, c_out, c_in), by frequencies."""
    fourier, k = RealFourier(grid), math.isqrt(len(taps))
    real, _ = symbol_factors(fourier.real_frequencies(), k, grid)
    factors = symbol_factors(fourier.frequencies(), k, grid)
    return SpectralConv(
        basis=fourier.paired_basis(),
        phases=fourier.phases(),
        real_blocks=np.tensordot(real, taps, axes=1),
        complex_blocks=np.stack([np.tensordot(f, taps, axes=1) for f in factors], axis=1),
    )
