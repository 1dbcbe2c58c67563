"""The real Fourier basis of a square grid, and where each frequency sits in it.

A circular convolution is diagonalised, frequency by frequency, by the two-dimensional discrete
Fourier transform; for real input half of the frequencies repeat the other half. Only an independent
half is kept, in real arithmetic. Along one axis the self-mirror frequencies ("edge": 0, and n/2
when n is even) have real coefficients, the `interior` ones 1 ... (n - 1) // 2 a cosine and a sine.

Two ways to a basis of the whole grid:

*Real along the rows, complex along the columns* (frozen networks, `frequencies`): after
`paired_basis` along the first axis each interior row is one complex number, cosine + i sine, at
every column, and `phases` transforms it along the second axis; edge rows are real and get
`paired_basis` again. `plane_basis` does all of it at once.

*Real along both* (training, `complex_frequencies`): `basis` along both axes; where both frequencies
are interior, four products CC, CS, SC, SS mix (k1, k2) and (k1, -k2) and are separated by a
butterfly of additions, sqrt(2) times an isometry: (CC - SS) + i (CS + SC) and (CC + SS) +
i (SC - CS).
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

    def frequencies(self) -> NDArray[np.int64]:
        """The independent complex frequencies in the order of `lipdeploy.spectral`, (count, 2).

        First those whose row frequency is interior, all columns of each; then those of the
        self-mirror rows, interior columns only.
        """
        edge, inner = np.array(self._edge_frequencies()), np.arange(1, self.interior + 1)
        return np.concatenate([_pairs(inner, np.arange(self.n)), _pairs(edge, inner)])

    def paired_basis(self) -> Array:
        """`basis` with each cosine followed by its sine, shape (n, n)."""
        e, h = self.edge, self.interior
        pairs = e + np.arange(2 * h).reshape(2, h).T.reshape(-1)
        basis: Array = self.basis()[np.concatenate([np.arange(e), pairs])]
        return basis

    def phases(self) -> Array:
        """The unitary transform of n complex numbers as a real orthogonal matrix, (2 n, 2 n).

        Rows are (frequency, part), columns (part, position); the parts are real and imaginary.
        """
        angle = 2 * np.pi * (np.outer(np.arange(self.n), np.arange(self.n)) % self.n) / self.n
        cosine, sine = np.cos(angle), np.sin(angle)
        rows = np.array([[cosine, -sine], [sine, cosine]]).transpose(2, 0, 1, 3)
        phases: Array = rows.reshape(2 * self.n, 2 * self.n) / np.sqrt(self.n)
        return phases

    def plane_basis(self) -> Array:
        """Orthonormal rows for the whole grid, shape (n * n, n * n).

        First the real frequencies, then (cosine, sine) of each of `frequencies`. Columns are
        positions, row by row.
        """
        positions = _pairs(np.arange(self.n), np.arange(self.n)).T
        real, count = self.real_frequencies(), self.n**2
        angle = 2 * np.pi * ((self.frequencies() @ positions) % self.n) / self.n
        waves = np.stack([np.cos(angle), np.sin(angle)], axis=1).reshape(-1, count)
        signs = np.cos(2 * np.pi * ((real @ positions) % self.n) / self.n)
        return np.concatenate([np.rint(signs), np.sqrt(2) * waves]) / self.n


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
