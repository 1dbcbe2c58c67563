"""Numbers on the safe side: factors for a bound's own rounding, bounds of a distance, radii."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MARGIN = 1 + 1e-12
"""Factor that covers the rounding of the few operations of a bound's own formula."""

CLAIM = 1 + 2.0**-22
"""What is written down is this much larger than what was proven, so that another proof, on another
machine, finds no more than what is claimed."""


@dataclass(frozen=True)
class AffineBound:
    """A bound constant + slope * t of something that depends on a distance t.

    Attributes:
        constant: at least 0.
        slope: at least 0.
    """

    constant: float
    slope: float

    def __call__(self, distances: Array) -> Array:
        """The bound at these distances, shape (batch,), rounded up."""
        return (self.constant + self.slope * distances) * MARGIN

    def plus(self, other: "AffineBound") -> "AffineBound":
        """The sum, rounded up."""
        constant, slope = self.constant + other.constant, self.slope + other.slope
        return AffineBound(constant * MARGIN, slope * MARGIN)

    def times(self, factor: float) -> "AffineBound":
        """A multiple, rounded up."""
        return AffineBound(self.constant * factor * MARGIN, self.slope * factor * MARGIN)


def round_down(values: Array, relative: float = 1e-14) -> Array:
    """Lower bounds of the numbers that `values` approximate within `relative`; negative becomes 0.

    What is not finite becomes 0 too: a bound that could not be computed certifies nothing.
    """
    lowered = np.where(np.isfinite(values), values, 0.0) * (1 - relative)
    result: Array = np.maximum(np.nextafter(lowered, -np.inf), 0.0)
    return result
