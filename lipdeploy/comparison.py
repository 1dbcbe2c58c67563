"""Two artifacts on the same images: how many images only one of them gets right or certifies."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipdeploy.bootstrap import Interval, difference_interval
from lipdeploy.evaluation import Evaluation


@dataclass(frozen=True)
class Difference:
    """One share of two artifacts, compared image by image.

    Attributes:
        radius: certified beyond it, l2 in [0, 1] pixels; None for right answers.
        only_this: images that count for this artifact and not for the other one.
        only_other: the reverse.
        difference: of the two shares, this minus the other.
        interval: of the difference; see `lipdeploy.bootstrap`.
    """

    radius: Fraction | None
    only_this: int
    only_other: int
    difference: float
    interval: Interval


def paired_differences(
    this: Evaluation, other: Evaluation, radii: Sequence[Fraction]
) -> list[Difference]:
    """Differences in clean accuracy, then in certified accuracy at each radius.

    Args:
        this: of one artifact.
        other: of another one, on the same images in the same order.
        radii: l2 in [0, 1] pixels.
    """
    clean = _difference(None, this.is_right, other.is_right)
    certified = [_difference(r, this.is_certified(r), other.is_certified(r)) for r in radii]
    return [clean, *certified]


def _difference(
    radius: Fraction | None, this: NDArray[np.bool_], other: NDArray[np.bool_]
) -> Difference:
    only_this, only_other = int((this & ~other).sum()), int((other & ~this).sum())
    total = len(this)
    interval = difference_interval(only_this, only_other, total)
    return Difference(radius, only_this, only_other, (only_this - only_other) / total, interval)
