"""A frozen circular convolution of a large grid, tile by tile (overlap-save).

One block for each frequency of an N x N grid would be N^2 c^2 numbers. Here the grid is cut into
tiles of t x t that overlap, one circular operator of t x t points is applied to each, and the
points that its own wrap-around did not reach are kept.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lipdeploy.bounds import (
    UNIT_ROUNDOFF,
    frobenius_upper,
    gamma,
    norm_upper,
    norms_upper,
    sum_of_squares_upper,
    up,
)
from lipdeploy.directed import MARGIN
from lipdeploy.errors import ShapeError
from lipdeploy.fourier import symbol_factors
from lipdeploy.operators import Array, Conversion, Convertible, Weights, check_shape, exact
from lipdeploy.rounding import Rounding, Step
from lipdeploy.spectral import SpectralConv, embeddings

MAX_TILE = 64
"""Largest side of a tile; proving the bounds of larger ones takes memory as its third power."""

Norms = Callable[[NDArray[Any]], Array]
"""Proven upper bounds of the norms of a stack of real matrices."""


@dataclass(frozen=True, eq=False)
class TiledConv(Convertible):
    """Tiles of t x t points, each of which keeps those that k x k taps reach from inside of it.

    Tile i of an axis keeps the points from `edges[i]` up to `edges[i + 1]`, and reads t points from
    `edges[i] - k // 2` on, around the edge of the grid. Kept points are disjoint and cover the
    grid. Were `inner` exactly a convolution with k x k taps, the result would be that convolution
    of the whole grid, but its stored weights are rounded: what the operator *is* is what is said
    here, with `inner` as stored, and `norm_upper` bounds that.

    Attributes:
        grid: side N of the grid.
        kernel_size: k, odd.
        inner: the operator of one tile, on t x t points.

    Raises:
        ShapeError: unless k is odd and at least 3, t at least 2 (k - 1), so that at least about
            half of a tile is kept along each axis, and N at least t, which is at most `MAX_TILE`.
    """

    form: ClassVar[str] = "tiled"
    grid: int
    kernel_size: int
    inner: SpectralConv

    def __post_init__(self) -> None:
        k, t = self.kernel_size, self.inner.grid
        if k < 3 or k % 2 == 0 or not 2 * (k - 1) <= t <= min(self.grid, MAX_TILE):
            raise ShapeError(
                f"tiled: {k} x {k} taps in tiles of {t} on a grid of {self.grid}; expected an odd "
                f"number of taps from 3 to {t // 2 + 1}, a grid of at least {t}, tiles of at most "
                f"{MAX_TILE}"
            )
        if self.inner.has_rows:
            raise ShapeError("tiled: images are stacked as columns inside")

    @classmethod
    def restore(cls, grid: int, kernel_size: int, **inner: Any) -> "TiledConv":  # noqa: ANN401
        """From `parameters` and `weights`."""
        named = {name.removeprefix(_INNER): value for name, value in inner.items()}
        return cls(grid, kernel_size, SpectralConv(**named))

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.inner.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.inner.out_channels

    @property
    def tile(self) -> int:
        """Side t of a tile."""
        return self.inner.grid

    @property
    def count(self) -> int:
        """Tiles along each axis: as few as can keep all points."""
        return -(-self.grid // (self.tile - self.kernel_size + 1))

    @property
    def edges(self) -> list[int]:
        """Where the kept points of each tile of an axis begin, and where the last ones end."""
        return [i * self.grid // self.count for i in range(self.count + 1)]

    @property
    def kept(self) -> list[slice]:
        """Within each tile of an axis, the points that are kept."""
        reach = self.kernel_size // 2
        return [slice(reach, reach + end - start) for start, end in pairwise(self.edges)]

    @property
    def _points(self) -> NDArray[np.int64]:
        """The points of an axis that each tile reads, shape (count, t)."""
        starts = np.array(self.edges[:-1]) - self.kernel_size // 2
        points: NDArray[np.int64] = (starts[:, None] + np.arange(self.tile)) % self.grid
        return points

    @cached_property
    def overlap(self) -> int:
        """The most tiles along an axis that read the same point; its square bounds both axes."""
        return int(np.bincount(self._points.ravel()).max())

    def parameters(self) -> dict[str, Any]:
        """Grid and kernel size, and those of the inner operator."""
        inner = {f"{_INNER}{name}": value for name, value in self.inner.parameters().items()}
        return {"grid": self.grid, "kernel_size": self.kernel_size, **inner}

    def weights(self) -> dict[str, Weights]:
        """Those of the inner operator."""
        return {f"{_INNER}{name}": weights for name, weights in self.inner.weights().items()}

    def converted(self, large: Conversion, small: Conversion) -> Self:
        """With another inner operator."""
        return replace(self, inner=self.inner.converted(large, small))

    def scaled(self, factor: float) -> Self:
        """With the inner operator times a number."""
        return replace(self, inner=self.inner.scaled(factor))

    def mv(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c_in)."""
        check_shape(self, x)
        q, t, points = self.count, self.tile, self._points
        tiles = x[points[:, None, :, None], points[:, None, :]]
        stacked = tiles.transpose(2, 3, 0, 1, 4, 5).reshape(t, t, -1, self.in_channels)
        y = self.inner.mv(stacked).reshape(t, t, q, q, -1, self.out_channels)
        rows = np.concatenate([y[cut, :, i] for i, cut in enumerate(self.kept)])
        return np.concatenate([rows[:, cut, i] for i, cut in enumerate(self.kept)], axis=1)

    @cached_property
    def taps(self) -> Array:
        """A k x k kernel near the inner operator, shape (k*k, c_out, c_in).

        What `inner` makes of a unit in one point; of a convolution y[p] = sum_d K[d] x[p + d] that
        is its taps in reverse. The bounds hold for any kernel; this one makes them small.
        """
        k, c, reach = self.kernel_size, self.in_channels, self.kernel_size // 2
        units = np.zeros((self.tile, self.tile, c, c))
        units[reach, reach] = np.eye(c)
        response = self.inner.mv(units)[:k, :k][::-1, ::-1]
        return np.ascontiguousarray(response.reshape(k * k, c, -1).transpose(0, 2, 1))

    @cached_property
    def norm_upper(self) -> float:
        """The norm of a convolution, and the overlap times the distance of a tile from it.

        Let K be any k x k kernel, C its circular convolution of the N x N grid, C' that of a tile,
        S the inner operator, d >= ||S - C'||. Let P_j read tile j, and Q_j keep of a tile the
        points of tile j and put them into the grid. The operator is T = sum_j Q_j S P_j.

        1. sum_j Q_j C' P_j = C: for a kept point the taps reach r = k // 2 points around it; in its
           tile it is at least r points from the first one and, since at most t - k + 1 points
           are kept along an axis, from the last one; so C' takes there what C takes in the grid.
        2. T = C + E with E = sum_j Q_j (S - C') P_j. The images of the Q_j are orthogonal, since
           kept points are disjoint, and Q_j has norm 1. So ||E x||^2 <= sum_j d^2 ||P_j x||^2.
        3. A tile reads no point twice, as t <= N. A point is read by at most `overlap` tiles along
           each axis, so sum_j ||P_j x||^2 <= overlap^2 ||x||^2, and ||E|| <= overlap d.

        Hence ||T|| <= ||C|| + overlap d. K is `taps`, its numbers as they are in float64.
        """
        distance = symbol_distance_upper(self.inner, self.taps)
        return up((kernel_norm_upper(self.taps) + self.overlap * distance) * MARGIN)

    def step(self, rounding: Rounding) -> Step:
        """The rounding of the inner operator, in every tile.

        With a, b its constants tile j is within a ||P_j x|| + b of exact. Kept points are disjoint,
        so all are within (sum_j (a ||P_j x|| + b)^2)^(1/2) <= a overlap ||x|| + b count, by the
        triangle inequality, count^2 being the number of tiles. Cutting and joining is exact. In
        a tile partial sums are at most growth ||P_j x||, and ||P_j x|| <= ||x||.
        """
        inner = self.inner.step(rounding)
        return Step(
            self.norm_upper,
            inner.rounding_upper * self.overlap * MARGIN,
            inner.underflow * self.count * MARGIN,
            inner.growth,
            inner.results,
        )


_INNER = "inner."


def kernel_norm_upper(taps: Array) -> float:
    """Upper bound of the norm of a k x k kernel's circular convolution of a grid of any size.

    Theorem: let G(f) = K(f)* K(f) - z I for the symbol K(f) = sum_d K[d] exp(-i f.d), f any two
    angles, z any number. With r = k // 2 and the angles 2 pi j / (12 r), j whole,

        ||K(f)||^2 <= z + (4 / 3) max_j ||G(f_j)||    for all f.

    Proof: for a unit vector v, h(f) = v* G(f) v is a real trigonometric polynomial of degree at
    most n = 2 r in each angle. In one of them: let |h| be largest, H, at f = 0, where we may take
    h(0) = H. By the inequality of Bernstein and Szego, h'^2 + n^2 h^2 <= n^2 H^2, arccos(h / H)
    changes at most at the rate n, so h(f) >= H cos(n f) for |n f| <= pi. The nearest of the 12 r
    angles is within pi / (12 r), where n f <= pi / 6: H cos(pi / 6) <= max_j |h(f_j)|. Once more
    in the other angle, 1 / cos(pi / 6)^2 = 4 / 3. G is Hermitian, so max_v |h(f)| = ||G(f)||.

    The frequencies of a grid of N x N are some of all f. K(-f) is the conjugate of K(f), so half
    of the angles will do; K^T has the norm of K. A kernel near an isometry has a small G.

    Args:
        taps: shape (k*k, c_out, c_in), k odd and at least 3.

    Raises:
        BoundError: if a tap is not finite.
    """
    if taps.shape[1] < taps.shape[2]:
        taps = taps.transpose(0, 2, 1)
    k = math.isqrt(len(taps))
    side, slack = 12 * (k // 2), symbol_slack(taps)
    centre = float(np.sum(np.square(taps))) / taps.shape[2]
    largest = 0.0
    for row in range(side // 2 + 1):
        frequencies = np.stack([np.full(side, row), np.arange(side)], axis=1)
        largest = max(largest, _deviation_upper(symbols(taps, frequencies, side), centre, slack))
    return up(math.sqrt(centre + 4 / 3 * largest) * MARGIN)


def _deviation_upper(matrices: Array, centre: float, slack: float) -> float:
    """Largest ||W^T W - centre I|| over all W that are within slack of one of the matrices.

    The computed product is within gamma(m) |W|^T |W|, the subtraction within u of its result, and
    ||W^T W - V^T V|| <= ||W - V|| (||W|| + ||V||).
    """
    product = np.tril(np.swapaxes(matrices, -1, -2) @ matrices)
    product += np.swapaxes(np.tril(product, -1), -1, -2)
    diagonal = np.arange(product.shape[-1])
    product[..., diagonal, diagonal] -= centre
    squares = sum_of_squares_upper(matrices)
    error = 1.001 * gamma(matrices.shape[-2]) * squares
    error += 2 * UNIT_ROUNDOFF * np.abs(product[..., diagonal, diagonal]).max(axis=-1)
    error += slack * (2 * np.sqrt(squares) + slack)
    return float(np.max(norms_upper(product) + error)) * MARGIN


def symbols(taps: Array, frequencies: NDArray[np.int64], side: int) -> Array:
    """K(f) as a real matrix of twice the size, shape (count, 2 c_out, 2 c_in).

    Args:
        taps: shape (k*k, c_out, c_in).
        frequencies: in units of 2 pi / side, shape (count, 2).
        side: of the grid.
    """
    cosines, sines = symbol_factors(frequencies, math.isqrt(len(taps)), side)
    real, imaginary = (np.tensordot(factor, taps, axes=1) for factor in (cosines, sines))
    return embeddings(np.stack([real, imaginary], axis=1))


def symbol_slack(taps: Array) -> float:
    """How far a computed symbol can be from exact; proven in `TaylorConv.skew_norm_upper`."""
    absolute = float(frobenius_upper(np.abs(taps).sum(axis=0)))
    return gamma(len(taps) + 32) * absolute * 2.01


def symbol_distance_upper(inner: SpectralConv, taps: Array, norms: Norms = norms_upper) -> float:
    """Upper bound of ||S - C||, C the circular convolution with these taps on the grid of S.

    Let F, G be the exact and the stored transform, M, L the exact and the stored blocks, so that
    C = F^T M F and S = G^T L G, with ||F|| = 1. Then

        S - C = F^T (L - M) F + G^T L (G - F) + (G - F)^T L F,

    so ||S - C|| <= ||L - M|| + (||G|| + 1) ||L|| ||G - F||. The transform has two stages, the
    basis along the rows, then basis or phases: with b, B the stored and the exact basis and p, P
    the phases, ||G - F|| <= max(||b - B||, ||p - P||) ||b|| + ||b - B||. ||L|| is the norm of the
    largest stored block and ||L - M|| the largest distance of one from the symbol (see
    `Spectral.norm_upper`). B and P are computed from angles up to 2 pi with a few roundings, so
    that each entry is within (20 t + 64) u (2 / t)^(1/2).

    Args:
        inner: S, on a grid of t x t.
        taps: shape (k*k, c_out, c_in).
        norms: how norms of real matrices are proven.
    """
    fourier = inner.fourier
    rows = _distance_upper(exact(inner.basis), fourier.paired_basis())
    columns = max(rows, _distance_upper(exact(inner.phases), fourier.phases()))
    transform_error = columns * norm_upper(inner.basis) + rows
    stored, exact_symbols = _stored_symbols(inner), _exact_symbols(inner, taps)
    # The rounding of a - b is at most u ||a - b||_F, within MARGIN of its norm.
    pairs = zip(stored, exact_symbols, strict=True)
    distance = max(float(np.max(norms(a - b), initial=0.0)) for a, b in pairs)
    largest = max(float(np.max(norms(blocks), initial=0.0)) for blocks in stored)
    rest = symbol_slack(taps) + (inner.transform_norm_upper + 1) * largest * transform_error
    return (distance + rest) * MARGIN


def _distance_upper(matrix: Array, computed: Array) -> float:
    """Bound of ||matrix - exact||, entries of `computed` being near those of an exact transform."""
    side, difference = len(computed), matrix - computed
    error = (20 * side + 64) * math.sqrt(4 * side) + 2 * float(frobenius_upper(difference))
    return norm_upper(difference) + error * UNIT_ROUNDOFF


def _stored_symbols(inner: SpectralConv) -> tuple[Array, Array]:
    """The blocks of real and of complex frequencies as real matrices."""
    return exact(inner.real_blocks), embeddings(exact(inner.complex_blocks))


def _exact_symbols(inner: SpectralConv, taps: Array) -> tuple[Array, Array]:
    """The symbol at the frequencies of `_stored_symbols`; at self-mirror ones it is real."""
    fourier, t = inner.fourier, inner.grid
    factors, _ = symbol_factors(fourier.real_frequencies(), math.isqrt(len(taps)), t)
    complex_symbols = symbols(taps, fourier.frequencies(), t)
    return np.tensordot(factors, taps, axes=1), complex_symbols
