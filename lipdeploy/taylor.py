"""A frozen zero-padded convolution, kept as a series with a proven remainder."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from lipdeploy.arithmetic import FLOAT32
from lipdeploy.bounds import (
    absolute_norms_upper,
    frobenius_upper,
    gamma,
    norm_upper,
    norms_upper,
    up,
)
from lipdeploy.directed import MARGIN
from lipdeploy.errors import BoundError, ShapeError
from lipdeploy.fourier import RealFourier, offsets, symbol_factors
from lipdeploy.operators import Array, Conversion, Convertible, Weights, check_shape, exact
from lipdeploy.rounding import Rounding, Step, tree_levels

MAX_DEGREE = 200
"""Far beyond what any kernel of training needs; a file that claims more would run for ever."""


@dataclass(frozen=True, eq=False)
class TaylorConv(Convertible):
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
        numbers = (self.grid, self.in_channels, self.out_channels, self.degree)
        if min(numbers) < 1:
            raise ShapeError(f"taylor: grid, channels and degree {numbers} must be positive")
        is_normal = FLOAT32.smallest_normal <= abs(self.scale) <= FLOAT32.largest
        if self.degree > MAX_DEGREE or not is_normal:
            raise ShapeError(f"taylor: degree {self.degree}, scale {self.scale}")
        k, c = math.isqrt(len(self.taps)), max(self.in_channels, self.out_channels)
        if self.taps.ndim != 3 or k % 2 == 0 or self.taps.shape != (k * k, c, c):
            raise ShapeError(f"taylor: taps of shape {self.taps.shape} for {c} channels")
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

    def parameters(self) -> dict[str, Any]:
        """Grid, channels, degree and scale."""
        names = ("grid", "in_channels", "out_channels", "degree", "scale")
        return {name: getattr(self, name) for name in names}

    def weights(self) -> dict[str, Weights]:
        """The taps."""
        return {"taps": self.taps}

    def converted(self, large: Conversion, small: Conversion) -> Self:
        """With other taps; rounding is odd, so they stay exactly skew."""
        return replace(self, taps=large(self.taps))

    def scaled(self, factor: float) -> Self:
        """With the result times a number."""
        return replace(self, scale=self.scale * factor)

    def mv(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c_in)."""
        check_shape(self, x)
        padded = np.zeros((*x.shape[:3], self.channels), dtype=x.dtype)
        padded[..., : self.in_channels] = x
        v = padded
        for k in range(self.degree, 0, -1):
            v = padded + self._convolve(v) / k
        return self.scale * v[..., : self.out_channels]

    def _convolve(self, x: Array) -> Array:
        y, n = np.zeros_like(x), self.grid
        for (down, right), tap in zip(offsets(self.kernel_size), exact(self.taps), strict=True):
            source = _overlap(down, n), _overlap(right, n)
            target = _overlap(-down, n), _overlap(-right, n)
            y[target] += x[source] @ tap.T
        return y

    @cached_property
    def skew_norm_upper(self) -> float:
        """Upper bound of ||A||: the maximum over the blocks of a circular grid that contains A.

        The zero-padded operator is a compression of the circular one on any M x M grid with
        M >= n + k // 2, which is block-diagonal over its frequencies. Blocks are computed from the
        taps: an angle below 2 pi is within 19 u of the exact one, so its cosine and sine, if the
        library's are accurate to 8 ulp, are within 32 u, and each entry is within gamma(k*k + 32)
        times the sum of |taps|.
        """
        side = self.grid + self.kernel_size // 2
        fourier = RealFourier(side)
        taps = exact(self.taps)
        slack = gamma(len(taps) + 32) * float(frobenius_upper(np.abs(taps).sum(axis=0))) * 2.01
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

    def step(self, rounding: Rounding) -> Step:
        """Horner steps v <- x + A v / k: a product for each tap, sums, two more operations.

        New errors are relative to absolute values, so the order of sums does not matter; those that
        are there already go through A itself. A term meets at most the roundings of its product,
        one for each tap, and four more: of 1/k, of the multiplication with it, of the sum with x,
        and one to spare. With L >= ||A||, N >= || |A| ||, the sum over the taps of || |tap| ||, V_k
        and E_k bounds of ||v_k|| / ||x|| and of its error, V_(k-1) = 1 + L V_k / k and
        E_(k-1) = L E_k / k + relative (1 + N (V_k + E_k) / k). Both grow with every step.
        """
        arithmetic, taps = rounding.arithmetic, len(self.taps)
        is_held = arithmetic.holds(self.taps)
        if not is_held and (arithmetic.operand_roundoff == 0 or arithmetic.is_flushed(self.taps)):
            raise BoundError(f"a weight is no normal number in {arithmetic.name}")
        absolute = float(np.sum(absolute_norms_upper(self.taps))) * MARGIN
        summed = 1 + arithmetic.gamma(rounding.terms(self.channels) + taps + 4)
        levels = tree_levels(self.channels, rounding.block or self.channels)
        stored = (1 + arithmetic.storage_roundoff) ** (taps + len(levels) + 5)
        of_taps = 0.0 if is_held else arithmetic.operand_roundoff
        cut = (1 + arithmetic.input_roundoff) * (1 + of_taps)
        relative = (summed * stored * cut - 1) * (1 + 1e-9)
        flushed = rounding.flushed(self.grid**2 * self.channels) * (taps * self.channels + 4)
        norm, size, error, underflow = self.skew_norm_upper, 1.0, 0.0, 0.0
        for k in range(self.degree, 0, -1):
            local = relative * (1 + absolute * (size + error) / k)
            error = (norm * error / k + local) * MARGIN
            underflow = ((norm + relative * absolute) * underflow / k + flushed) * MARGIN
            size = (1 + norm * size / k) * MARGIN
        factor = abs(self.scale)
        twice = 2 * rounding.entry_roundoff * (1 + rounding.entry_roundoff)
        error = factor * (error + twice * (size + error)) * MARGIN
        underflow = (1 + factor) * 2 * (underflow + flushed)
        growth = (1 + factor) * (1 + absolute) * (size + error)
        return Step(self.norm_upper, error, underflow, growth, growth)


def _overlap(shift: int, n: int) -> slice:
    return slice(max(shift, 0), n + min(shift, 0))


def exponential_remainder_upper(norm_upper: float, degree: int) -> float:
    """Upper bound of ||exp(A) - T_n(A)|| for skew A with ||A|| <= norm_upper, T_n of this degree.

    A is normal with eigenvalues i t, and |exp(i t) - T_n(i t)| <= |t|^(n+1) / (n+1)! (Taylor with
    the integral remainder, |exp(i s)| = 1).
    """
    logarithm = (degree + 1) * math.log(norm_upper + 1e-300) - math.lgamma(degree + 2)
    return math.exp(logarithm) * (1 + 1e-10) if logarithm < 700 else math.inf
