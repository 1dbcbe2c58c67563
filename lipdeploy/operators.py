"""The forms of one frozen linear layer.

An operator maps grid-first arrays (n, n, batch, c_in) to (n, n, batch, c_out). It knows its
weights by name, applies itself in float64, and bounds its own norm and rounding error. Weights are
float64, float32 or float16; what an operator *is* is defined by the weights as they are stored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lipdeploy.bounds import (
    UNIT_ROUNDOFF,
    frobenius_upper,
    gamma,
    norm_upper,
    norms_upper,
    up,
)
from lipdeploy.errors import ShapeError
from lipdeploy.fourier import RealFourier, offsets, symbol_factors
from lipdeploy.rounding import Step, compose, exponential_remainder_upper

Array = NDArray[np.float64]
Weights = NDArray[Any]

SQRT2_UPPER = up(2**0.5)


class LinearOperator(Protocol):
    """A linear map of n x n grids; `form` names it in the manifest and on the command line."""

    form: ClassVar[str]

    @property
    def grid(self) -> int:
        """Side of the grid."""

    @property
    def in_channels(self) -> int:
        """Channels of the input."""

    @property
    def out_channels(self) -> int:
        """Channels of the output."""

    def weights(self) -> dict[str, Weights]:
        """The stored arrays by name."""

    def stored_as(self, dtype: DTypeLike) -> Self:
        """The operator whose large weights are rounded to `dtype`."""

    def scaled(self, factor: float) -> Self:
        """The operator times a number."""

    def mv(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c_in), in float64."""

    @property
    def norm_upper(self) -> float:
        """Rigorous upper bound of the spectral norm."""

    @property
    def step(self) -> Step:
        """Norm and rounding error of `mv`."""


def _exact(weights: Weights) -> Array:
    return weights.astype(np.float64)


def _absolute_norm_upper(weights: Weights) -> float:
    """Upper bound of || |W| ||_2 over a stack of matrices: the largest Frobenius norm."""
    return float(np.max(frobenius_upper(weights), initial=0.0))


def check_shape(operator: LinearOperator, x: Array) -> None:
    """Raise ShapeError unless x is (n, n, batch, c_in)."""
    n, c = operator.grid, operator.in_channels
    if x.ndim != 4 or x.shape[:2] != (n, n) or x.shape[3] != c:
        raise ShapeError(f"{operator.form}: got shape {x.shape}, expected ({n}, {n}, batch, {c})")


@dataclass(frozen=True, eq=False)
class PointwiseMatrix:
    """The same matrix at every grid point: y = x @ matrix.

    Attributes:
        grid: side of the grid.
        matrix: shape (c_in, c_out).
    """

    form: ClassVar[str] = "pointwise"
    grid: int
    matrix: Weights

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.matrix.shape[0])

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.matrix.shape[1])

    def weights(self) -> dict[str, Weights]:
        """The matrix."""
        return {"matrix": self.matrix}

    def stored_as(self, dtype: DTypeLike) -> Self:
        """With the matrix rounded to `dtype`."""
        return replace(self, matrix=self.matrix.astype(dtype))

    def scaled(self, factor: float) -> Self:
        """With the matrix times a number."""
        return replace(self, matrix=self.matrix * factor)

    def mv(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c_in)."""
        check_shape(self, x)
        y: Array = x @ _exact(self.matrix)
        return y

    @cached_property
    def norm_upper(self) -> float:
        """The norm of the matrix (the operator is block-diagonal with equal blocks)."""
        return norm_upper(self.matrix)

    @cached_property
    def step(self) -> Step:
        """One matrix product with sums of length c_in."""
        return Step(self.norm_upper, gamma(self.in_channels) * _absolute_norm_upper(self.matrix))


@dataclass(frozen=True, eq=False)
class DenseMatrix:
    """One matrix for the whole grid: rows and columns are (row, column, channel).

    Attributes:
        grid: side of the grid.
        matrix: shape (n * n * c_in, n * n * c_out), applied from the right.
    """

    form: ClassVar[str] = "dense"
    grid: int
    matrix: Weights

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.matrix.shape[0]) // self.grid**2

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.matrix.shape[1]) // self.grid**2

    def weights(self) -> dict[str, Weights]:
        """The matrix."""
        return {"matrix": self.matrix}

    def stored_as(self, dtype: DTypeLike) -> Self:
        """With the matrix rounded to `dtype`."""
        return replace(self, matrix=self.matrix.astype(dtype))

    def scaled(self, factor: float) -> Self:
        """With the matrix times a number."""
        return replace(self, matrix=self.matrix * factor)

    def mv(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c_in)."""
        check_shape(self, x)
        n, batch = self.grid, x.shape[2]
        rows = x.transpose(2, 0, 1, 3).reshape(batch, -1) @ _exact(self.matrix)
        y: Array = rows.reshape(batch, n, n, -1).transpose(1, 2, 0, 3)
        return y

    @cached_property
    def norm_upper(self) -> float:
        """The norm of the matrix."""
        return norm_upper(self.matrix)

    @cached_property
    def step(self) -> Step:
        """One matrix product with sums of length n * n * c_in."""
        rounding = gamma(self.matrix.shape[0]) * _absolute_norm_upper(self.matrix)
        return Step(self.norm_upper, rounding)


@dataclass(frozen=True, eq=False)
class SpectralConv:
    """A circular convolution, one block for each independent frequency (see `lipdeploy.fourier`).

    Attributes:
        basis: the real Fourier basis as stored, shape (n, n).
        real_blocks: shape (edge**2, c_in, c_out), applied from the right.
        complex_blocks: shape (count, c_in, 2 * c_out), real and imaginary part side by side, the
            factor that the two butterflies owe included; empty on grids of at most 2 x 2.
    """

    form: ClassVar[str] = "spectral"
    basis: Weights
    real_blocks: Weights
    complex_blocks: Weights = field(default_factory=lambda: np.zeros((0, 0, 0)))

    @property
    def grid(self) -> int:
        """Side of the grid."""
        return int(self.basis.shape[0])

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.real_blocks.shape[1])

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.real_blocks.shape[2])

    @property
    def fourier(self) -> RealFourier:
        """The frequencies of the grid."""
        return RealFourier(self.grid)

    def weights(self) -> dict[str, Weights]:
        """Basis and blocks."""
        named = {"basis": self.basis, "real_blocks": self.real_blocks}
        return named | ({"complex_blocks": self.complex_blocks} if self.fourier.interior else {})

    def stored_as(self, dtype: DTypeLike) -> Self:
        """With the blocks rounded to `dtype`; the small basis keeps at least float32."""
        return replace(
            self,
            basis=self.basis.astype(np.promote_types(dtype, np.float32)),
            real_blocks=self.real_blocks.astype(dtype),
            complex_blocks=self.complex_blocks.astype(dtype),
        )

    def scaled(self, factor: float) -> Self:
        """With the blocks times a number."""
        return replace(
            self,
            real_blocks=self.real_blocks * factor,
            complex_blocks=self.complex_blocks * factor,
        )

    def mv(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c_in)."""
        check_shape(self, x)
        n, basis = self.grid, _exact(self.basis)
        rows = (basis @ x.reshape(n, -1)).reshape(x.shape)
        coefficients = (basis @ rows.reshape(n, n, -1)).reshape(x.shape)
        y = self._join(*self._multiply(*self._split(coefficients)))
        columns = (basis.T @ y.reshape(n, n, -1)).reshape(y.shape)
        result: Array = (basis.T @ columns.reshape(n, -1)).reshape(y.shape)
        return result

    def _split(self, x: Array) -> tuple[Array, Array, Array]:
        e, c, s = self.fourier.parts
        real = [x[e, c], x[c, e], x[c, c] - x[s, s], x[c, c] + x[s, s]]
        imaginary = [x[e, s], x[s, e], x[c, s] + x[s, c], x[s, c] - x[c, s]]
        return _flatten(real), _flatten(imaginary), _flatten([x[e, e]])

    def _multiply(self, real: Array, imaginary: Array, mirror: Array) -> tuple[Array, ...]:
        if not self.fourier.interior:
            empty = np.zeros((0, mirror.shape[1], self.out_channels))
            return empty, empty, mirror @ _exact(self.real_blocks)
        blocks, c = _exact(self.complex_blocks), self.out_channels
        from_real, from_imaginary = real @ blocks, imaginary @ blocks
        y_real = from_real[..., :c] - from_imaginary[..., c:]
        y_imaginary = from_real[..., c:] + from_imaginary[..., :c]
        return y_real, y_imaginary, mirror @ _exact(self.real_blocks)

    def _join(self, real: Array, imaginary: Array, mirror: Array) -> Array:
        e, h = self.fourier.edge, self.fourier.interior
        ends = np.cumsum([e * h, h * e, h * h])
        ec, ce, plus, minus = np.split(real, ends)
        es, se, plus_i, minus_i = np.split(imaginary, ends)
        cells = [
            [(mirror, e, e), (ec, e, h), (es, e, h)],
            [(ce, h, e), (plus + minus, h, h), (plus_i - minus_i, h, h)],
            [(se, h, e), (plus_i + minus_i, h, h), (minus - plus, h, h)],
        ]
        rows = [[v.reshape(a, b, *v.shape[1:]) for v, a, b in row] for row in cells]
        joined: Array = np.concatenate([np.concatenate(row, axis=1) for row in rows])
        return joined

    @cached_property
    def norm_upper(self) -> float:
        """||basis||^4 times the largest block norm.

        With F the basis along both axes and U the butterfly, the operator is F^T U^T D U F, D the
        blocks. U maps disjoint groups of coefficients to disjoint groups of frequencies; it is
        isometric but where both frequencies are interior, where it is sqrt(2) times an isometry.
        So the norm is at most ||F||^2 max_f ||D_f|| s_f with s_f = 2 there and 1 elsewhere, that
        is, 1 / block_scale. A complex block acts on (real, imaginary) as a real matrix of twice
        the size.
        """
        basis = norm_upper(self.basis)
        largest = float(np.max(norms_upper(self.real_blocks)))
        if len(self.complex_blocks):
            scaled = norms_upper(self._real_embedding()) / self.fourier.block_scale()
            largest = max(largest, float(np.max(scaled)))
        squared = up(basis * basis)
        return up(up(squared * squared) * largest)

    def _real_embedding(self) -> Array:
        """Complex blocks as real matrices, shape (count, 2 c_in, 2 c_out)."""
        blocks, c = _exact(self.complex_blocks), self.out_channels
        real, imaginary = blocks[..., :c], blocks[..., c:]
        upper, lower = blocks, np.concatenate([-imaginary, real], axis=2)
        embedding: Array = np.concatenate([upper, lower], axis=1)
        return embedding

    @cached_property
    def step(self) -> Step:
        """Seven steps: two transforms, butterfly, blocks, butterfly, two transforms."""
        absolute = _absolute_norm_upper(self.basis)
        transform = Step(norm_upper(self.basis), gamma(self.grid) * absolute)
        butterfly = Step(SQRT2_UPPER, SQRT2_UPPER * 1.001 * UNIT_ROUNDOFF)
        stacked = _absolute_norm_upper(self.complex_blocks) * SQRT2_UPPER
        size = max(stacked, _absolute_norm_upper(self.real_blocks))
        blocks = Step(up(size), gamma(self.in_channels + 2) * size * 1.001)
        steps = [transform, transform, butterfly, blocks, butterfly, transform, transform]
        return Step(self.norm_upper, compose(steps).rounding_upper)


def _flatten(parts: list[Array]) -> Array:
    return np.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])


@dataclass(frozen=True, eq=False)
class TaylorConv:
    """The series of exp(A) for a zero-padded skew convolution A, to a degree with proven remainder.

    Attributes:
        grid: side of the grid.
        in_channels: channels of the input; missing ones are zero.
        out_channels: channels of the output; surplus ones are dropped.
        taps: the skew kernel, shape (k*k, c, c), axes (tap, output, input).
        degree: highest power of A.
        scale: factor of the result.
    """

    form: ClassVar[str] = "taylor"
    grid: int
    in_channels: int
    out_channels: int
    taps: Weights
    degree: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not np.array_equal(self.taps[::-1].transpose(0, 2, 1), -self.taps):
            raise ShapeError(
                "taylor: the kernel is not skew-symmetric, so its series is no rotation"
            )

    @property
    def channels(self) -> int:
        """Channels of the skew convolution."""
        return int(self.taps.shape[1])

    @property
    def kernel_size(self) -> int:
        """Side of the kernel."""
        return math.isqrt(len(self.taps))

    def weights(self) -> dict[str, Weights]:
        """The taps."""
        return {"taps": self.taps}

    def stored_as(self, dtype: DTypeLike) -> Self:
        """With the taps rounded to `dtype`; rounding is odd, so they stay exactly skew."""
        return replace(self, taps=self.taps.astype(dtype))

    def scaled(self, factor: float) -> Self:
        """With the result times a number."""
        return replace(self, scale=self.scale * factor)

    def mv(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c_in)."""
        check_shape(self, x)
        padded = np.zeros((*x.shape[:3], self.channels))
        padded[..., : self.in_channels] = x
        v = padded
        for k in range(self.degree, 0, -1):
            v = padded + self._convolve(v) / k
        return self.scale * v[..., : self.out_channels]

    def _convolve(self, x: Array) -> Array:
        y, n = np.zeros_like(x), self.grid
        for (down, right), tap in zip(offsets(self.kernel_size), _exact(self.taps), strict=True):
            source = _overlap(down, n), _overlap(right, n)
            target = _overlap(-down, n), _overlap(-right, n)
            y[target] += x[source] @ tap.T
        return y

    @cached_property
    def skew_norm_upper(self) -> float:
        """Upper bound of ||A||: the maximum over the blocks of a circular grid that contains A.

        The zero-padded operator is a compression of the circular one on any M x M grid with
        M >= n + k // 2, which is block-diagonal over its frequencies. Blocks are computed from the
        taps: cosines and sines are within 8 u, so each entry is within gamma(k*k + 16) times the
        sum of |taps|.
        """
        side = self.grid + self.kernel_size // 2
        fourier = RealFourier(side)
        taps = _exact(self.taps)
        slack = gamma(len(taps) + 16) * float(frobenius_upper(np.abs(taps).sum(axis=0))) * 2.01
        real, _ = symbol_factors(fourier.real_frequencies(), self.kernel_size, side)
        largest = float(np.max(norms_upper(np.tensordot(real, taps, axes=1))))
        cosines, sines = symbol_factors(fourier.complex_frequencies(), self.kernel_size, side)
        for cosine, sine in zip(cosines, sines, strict=True):
            a, b = np.tensordot(cosine, taps, axes=1), np.tensordot(sine, taps, axes=1)
            largest = max(largest, norm_upper(np.block([[a, b], [-b, a]])))
        return up(largest + slack)

    @cached_property
    def norm_upper(self) -> float:
        """1 plus the remainder, times the scale: exp(A) is orthogonal on the padded channels."""
        remainder = exponential_remainder_upper(self.skew_norm_upper, self.degree)
        return up(abs(self.scale) * up(1 + remainder))

    @cached_property
    def step(self) -> Step:
        """Horner steps v <- x + A v / k, each with a product and three more roundings.

        With N = sum over taps of ||tap||_F >= || |A| ||_2 and V_k, E_k bounds of ||v_k|| / ||x||
        and of its error, V_(k-1) = 1 + N V_k / k and
        E_(k-1) = N E_k / k + gamma(k*k*c + 4) (1 + N (V_k + E_k) / k).
        """
        absolute = float(np.sum(frobenius_upper(self.taps))) * (1 + 1e-12)
        relative = gamma(len(self.taps) * self.channels + 4)
        size, error = 1.0, 0.0
        for k in range(self.degree, 0, -1):
            grown = 1 + absolute * (size + error) / k
            error = (absolute * error / k + relative * grown) * (1 + 1e-12)
            size = (1 + absolute * size / k) * (1 + 1e-12)
        factor = abs(self.scale)
        rounding = factor * (error + 2 * UNIT_ROUNDOFF * (size + error)) * (1 + 1e-12)
        return Step(self.norm_upper, rounding)


def _overlap(shift: int, n: int) -> slice:
    return slice(max(shift, 0), n + min(shift, 0))


FORMS: Mapping[str, type[LinearOperator]] = {
    kind.form: kind for kind in (PointwiseMatrix, DenseMatrix, SpectralConv, TaylorConv)
}
