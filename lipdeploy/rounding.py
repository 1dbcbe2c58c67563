"""A-priori rounding errors of the float64 reference evaluation.

Every linear step is described by two numbers: L, an upper bound of its norm, and a, such that the
computed result differs from the exact one by at most a ||x||_2, whatever the order of the sums.
The bounds are crude (Frobenius norms) because a float64 unit roundoff makes them negligible.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipdeploy.bounds import TINY, UNIT_ROUNDOFF, up

Array = NDArray[np.float64]

MARGIN = 1 + 1e-12
"""Factor that covers the rounding of the few operations of a bound's own formula."""


@dataclass(frozen=True)
class Step:
    """One linear step of an evaluation.

    Attributes:
        norm_upper: L, an upper bound of the spectral norm of the exact step.
        rounding_upper: a, such that ||fl(step(x)) - step(x)||_2 <= a ||x||_2 + TINY.
    """

    norm_upper: float
    rounding_upper: float


def compose(steps: Iterable[Step]) -> Step:
    """The step made of several, first to last.

    By induction: if ||x_i|| grows by at most L_i and the computed x_i differs by d_i, then
    d_(i+1) <= L d_i + a (||x_i|| + d_i), so ||x_i|| + d_i grows by at most L + a, and the total
    error is at most prod(L_i + a_i) - prod(L_i). The TINY of each step is far below that of the
    whole, which its user adds.
    """
    norm, inflated = 1.0, 1.0
    for step in steps:
        norm = up(norm * step.norm_upper)
        inflated = up(inflated * up(step.norm_upper + step.rounding_upper))
    # The difference cancels; products of upper bounds agree with the exact ones to 1e-13.
    return Step(norm, (inflated - norm) * MARGIN + 1e-13 * inflated)


@dataclass(frozen=True)
class AffineBound:
    """A bound constant + slope * ||x||, for all inputs x of a network at once.

    Attributes:
        constant: at least 0.
        slope: at least 0.
    """

    constant: float
    slope: float

    def __call__(self, norms: Array) -> Array:
        """The bound for inputs of these norms, shape (batch,), rounded up."""
        return (self.constant + self.slope * norms) * MARGIN

    def plus(self, other: "AffineBound") -> "AffineBound":
        """The sum, rounded up."""
        constant, slope = self.constant + other.constant, self.slope + other.slope
        return AffineBound(constant * MARGIN, slope * MARGIN)

    def times(self, factor: float) -> "AffineBound":
        """A multiple, rounded up."""
        return AffineBound(self.constant * factor * MARGIN, self.slope * factor * MARGIN)


NOTHING = AffineBound(TINY, 0.0)
"""What underflow can add to a step."""


@dataclass(frozen=True)
class Enclosure:
    """What is known, for every input x, of one intermediate vector of an evaluation.

    Attributes:
        norm: bound of the norm of the exact vector.
        error: bound of the distance of the computed vector.
    """

    norm: AffineBound
    error: AffineBound

    def after_step(self, step: Step) -> "Enclosure":
        """After a linear step.

        The step is computed at the computed vector: its own rounding is at most a times the norm
        of that, and the error that came in grows by at most L.
        """
        error = self.error.times(step.norm_upper + step.rounding_upper)
        error = error.plus(self.norm.times(step.rounding_upper))
        return Enclosure(self.norm.times(step.norm_upper).plus(NOTHING), error.plus(NOTHING))

    def after_bias(self, bias_norm_upper: float) -> "Enclosure":
        """After adding a bias: one rounding of each entry of the sum."""
        norm = self.norm.plus(AffineBound(bias_norm_upper, 0.0))
        error = self.error.times(1 + UNIT_ROUNDOFF).plus(norm.times(UNIT_ROUNDOFF))
        return Enclosure(norm, error.plus(NOTHING))


EXACT_INPUT = Enclosure(AffineBound(0.0, 1.0), AffineBound(0.0, 0.0))
"""The input of a network: its norm is ||x||, and it is exact."""


def round_down(values: Array, relative: float = 1e-14) -> Array:
    """Lower bounds of the numbers that `values` approximate within `relative`; negative becomes 0.

    What is not finite becomes 0 too: a bound that could not be computed certifies nothing.
    """
    lowered = np.where(np.isfinite(values), values, 0.0) * (1 - relative)
    result: Array = np.maximum(np.nextafter(lowered, -np.inf), 0.0)
    return result


def exponential_remainder_upper(norm_upper: float, degree: int) -> float:
    """Upper bound of ||exp(A) - T_n(A)|| for skew A with ||A|| <= norm_upper, T_n of this degree.

    A is normal with eigenvalues i t, and |exp(i t) - T_n(i t)| <= |t|^(n+1) / (n+1)! (Taylor with
    the integral remainder, |exp(i s)| = 1).
    """
    logarithm = (degree + 1) * math.log(norm_upper + 1e-300) - math.lgamma(degree + 2)
    return math.exp(logarithm) * (1 + 1e-10) if logarithm < 700 else math.inf
