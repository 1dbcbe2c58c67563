"""The real Fourier basis of a square grid, and where each frequency sits in it.

Everything here is in *grid-first* layout: arrays of shape (height, width, batch, channels). A
circular convolution is diagonalised, frequency by frequency, by the two-dimensional discrete
Fourier transform; for real input half of the frequencies repeat the other half. Only the
independent half is kept, in real arithmetic:

1. Apply the orthonormal real basis of `RealFourier.basis` along the height and along the width.
   Its rows are, in this order, the `edge` self-mirror frequencies (0, and n/2 when n is even),
   the cosines and the sines of the `interior` frequencies 1 ... (n - 1) // 2.
2. Where both frequencies are self-mirror the coefficients are those of a real frequency.
   Where one is, (cosine, sine) is the complex coefficient itself. Where none is, four products
   CC, CS, SC, SS mix the frequencies (k1, k2) and (k1, -k2), and are separated by a butterfly
   of additions: (CC - SS) + i (CS + SC) and (CC + SS) + i (SC - CS).

The butterfly is sqrt(2) times an isometry; whoever applies it forwards and backwards owes a
factor 1/2 (`RealFourier.block_scale`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RealFourier:
    """The independent frequencies of an n x n grid of real numbers."""

    n: int

    @property
    def edge(self) -> int:
        """Number of self-mirror frequencies of one axis: 1 for odd n, 2 for even n."""
        return min(self.n, 2 - self.n % 2)

    @property
    def interior(self) -> int:
        """Number of (cosine, sine) pairs of one axis."""
        return (self.n - 1) // 2

    @property
    def parts(self) -> tuple[slice, slice, slice]:
        """Slices of one axis of coefficients: self-mirror, cosines, sines."""
        e, h = self.edge, self.interior
        return slice(0, e), slice(e, e + h), slice(e + h, e + 2 * h)

    def basis(self) -> Array:
        """Orthonormal rows, shape (n, n), rounded to float64."""
        position = np.arange(self.n)
        rows = [np.cos(2 * np.pi * f * position / self.n) for f in self._edge_frequencies()]
        inner = np.arange(1, self.interior + 1)[:, None] * position
        angle = 2 * np.pi * (inner % self.n) / self.n
        scale = np.sqrt(2 / self.n)
        return np.concatenate(
            [np.stack(rows) / np.sqrt(self.n), scale * np.cos(angle), scale * np.sin(angle)]
        )

    def _edge_frequencies(self) -> list[int]:
        return [0, self.n // 2][: self.edge]

    def real_frequencies(self) -> NDArray[np.int64]:
        """The frequencies with real blocks, shape (edge**2, 2)."""
        edge = np.array(self._edge_frequencies())
        return _pairs(edge, edge)

    def complex_frequencies(self) -> NDArray[np.int64]:
        """The independent frequencies with complex blocks, shape (count, 2), in butterfly order."""
        edge = np.array(self._edge_frequencies())
        inner = np.arange(1, self.interior + 1)
        return np.concatenate(
            [_pairs(edge, inner), _pairs(inner, edge), _pairs(inner, inner), _pairs(inner, -inner)]
        )

    def block_scale(self) -> Array:
        """Factor owed by each complex block for butterflies both ways, shape (count,): 1 or 1/2."""
        mixed = 2 * self.interior**2
        single = 2 * self.edge * self.interior
        return np.concatenate([np.ones(single), np.full(mixed, 0.5)])


def _pairs(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    grid = np.meshgrid(first, second, indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 2).astype(np.int64)


def offsets(kernel_size: int) -> NDArray[np.int64]:
    """Spatial offsets of the taps of a k x k kernel, row by row, shape (k*k, 2)."""
    reach = np.arange(kernel_size) - kernel_size // 2
    return _pairs(reach, reach)


def symbol_factors(frequencies: NDArray[np.int64], kernel_size: int, n: int) -> tuple[Array, Array]:
    """Cosine and sine parts of exp(-2 pi i f.d / n) for every frequency f and tap offset d.

    The convolution y[p] = sum_d K[d] x[p + d] multiplies the coefficient sum_p x[p] exp(2 pi i
    f.p / n) by sum_d K[d] exp(-2 pi i f.d / n), whose real part is cosines @ K and whose
    imaginary part is sines @ K, K being the taps flattened to (k*k, ...).

    Returns:
        Two arrays of shape (len(frequencies), k*k).
    """
    phase = (frequencies @ offsets(kernel_size).T) % n
    angle = 2 * np.pi * phase / n
    return np.cos(angle), -np.sin(angle)
