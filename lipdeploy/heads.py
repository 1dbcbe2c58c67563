"""Classification heads: logits, and the radius in feature space on which the class cannot change.

Radii hold against *all* rivals and count the rounding of their own float64 evaluation; what cannot
be shown is 0. The MLP head is in `lipdeploy.mlp_head`.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lipdeploy.arithmetic import Arithmetic, stored
from lipdeploy.bounds import TINY, UNIT_ROUNDOFF, gamma, row_norms_upper
from lipdeploy.directed import MARGIN, AffineBound, round_down
from lipdeploy.errors import BoundError, ShapeError
from lipdeploy.rounding import Rounding

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Weights = NDArray[Any]


@dataclass(frozen=True)
class Slack:
    """What a margin must exceed: gap + slope t everywhere in a ball of radius t.

    That is the arithmetic error of an engine's logits, which grows with the distance.

    Attributes:
        gap: shape (batch,), or a number for all.
        slope: at least 0.
    """

    gap: Array | float = 0.0
    slope: float = 0.0


NO_SLACK = Slack()

LARGEST_LOGIT = 1e15
"""Heads whose numbers can be larger are refused, far below where float32 ends; the radius in an
engine's graph multiplies two of them."""


class Head(Protocol):
    """From features to logits and radii."""

    kind: ClassVar[str]

    @property
    def features(self) -> int:
        """Length of a feature vector."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    def weights(self) -> dict[str, Weights]:
        """The stored arrays by name."""

    def stored_as(self, dtype: DTypeLike) -> Self:
        """The head with its weights rounded to `dtype`, its constants proven anew."""

    def logits(self, features: Array) -> Array:
        """Map features (batch, d) to logits (batch, classes)."""

    def radii_lower(
        self, features: Array, labels: Labels, slack: Slack = NO_SLACK, *, tight: bool = False
    ) -> Array:
        """Radii of l2 balls around `features` on which `labels` lead by more than the slack.

        Args:
            features: shape (batch, d).
            labels: class indices, shape (batch,).
            slack: by how much more than 0.
            tight: larger radii where the head has a slower way to prove them.

        Returns:
            Shape (batch,), rounded down; 0 where nothing can be shown.
        """

    def logit_error(self, rounding: Rounding, norm: AffineBound, reach: float) -> AffineBound:
        """Bound of the error of any difference of two logits, computed in an arithmetic.

        Against the exact difference at the same features, whose norm is at most `norm`; both bounds
        are functions of the same distance, which is at most `reach`.

        Raises:
            BoundError: if a weight does not exist in the arithmetic, or a number can become too
                large within the reach.
        """

    def slope_error(self, rounding: Rounding, norm: AffineBound) -> AffineBound:
        """Bound of the error of the gradient of z_y - z_j for each unit of ||w_y - w_j||.

        As the radius in an engine's graph computes it; 0 where that needs no gradient.
        """


def check_features(head: Head, features: Array) -> None:
    """Raise ShapeError unless features are (batch, d)."""
    if features.ndim != 2 or features.shape[1] != head.features:
        raise ShapeError(
            f"got features of shape {features.shape}, expected (batch, {head.features})"
        )


def check_affine(weight: Weights, bias: Weights) -> None:
    """Raise ShapeError unless x -> W x + b is a map; a bias that numpy would spread is none."""
    if weight.ndim != 2 or 0 in weight.shape or bias.shape != weight.shape[:1]:
        raise ShapeError(f"head: weight of shape {weight.shape} and bias of shape {bias.shape}")


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Logits W z + b.

    Attributes:
        weight: W, shape (classes, d).
        bias: b, shape (classes,).
    """

    kind: ClassVar[str] = "linear"
    weight: Weights
    bias: Weights

    def __post_init__(self) -> None:
        check_affine(self.weight, self.bias)

    @property
    def features(self) -> int:
        """Length of a feature vector."""
        return int(self.weight.shape[1])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.weight.shape[0])

    def weights(self) -> dict[str, Weights]:
        """W and b."""
        return {"weight": self.weight, "bias": self.bias}

    def stored_as(self, dtype: DTypeLike) -> Self:
        """With W and b rounded to `dtype`."""
        return replace(self, weight=stored(self.weight, dtype), bias=stored(self.bias, dtype))

    def logits(self, features: Array) -> Array:
        """Map features (batch, d) to logits (batch, classes)."""
        check_features(self, features)
        logits: Array = features @ self._weight.T + self.bias.astype(np.float64)
        return logits

    @cached_property
    def _weight(self) -> Array:
        return self.weight.astype(np.float64)

    @cached_property
    def distances_upper(self) -> Array:
        """Upper bounds of ||w_y - w_j|| for all pairs; shape (classes, classes)."""
        return row_distances_upper(self._weight)

    def radii_lower(
        self, features: Array, labels: Labels, slack: Slack = NO_SLACK, *, tight: bool = False
    ) -> Array:
        """The smallest (z_y - z_j - gap) / (||w_y - w_j||_2 + slope) over all rivals j.

        Exact but for rounding, so there is nothing tighter (Tsuzuku et al., 2018, with the norm of
        the difference instead of a bound). A computed logit is within
        gamma(d + 1) (||w|| ||z|| + |b|) of the exact one, by Cauchy-Schwarz; that is taken off both
        sides of each margin. Taking it off and subtracting are three more roundings, of numbers of
        the size of the logits: gamma(d + 4).
        """
        logits = self.logits(features)
        norms = row_norms_upper(features)
        scale = norms[:, None] * row_norms_upper(self._weight) + np.abs(self.bias)
        error = gamma(self.features + 4) * scale * MARGIN + TINY
        index = labels[:, None]
        own = np.take_along_axis(logits - error, index, axis=1)
        gap = np.broadcast_to(np.asarray(slack.gap, dtype=np.float64), labels.shape)
        margins = own - (logits + error) - gap[:, None]
        radii = margins / ((self.distances_upper[labels] + slack.slope) * MARGIN + TINY)
        np.put_along_axis(radii, index, np.inf, axis=1)
        return round_down(np.min(radii, axis=1))

    def logit_error(self, rounding: Rounding, norm: AffineBound, reach: float) -> AffineBound:
        """Of two logits, relative * (||w|| ||z|| + |b|) each, by Cauchy-Schwarz."""
        return dot_products_error(rounding, self.weight, self.bias, norm, reach)

    def slope_error(self, rounding: Rounding, norm: AffineBound) -> AffineBound:
        """None: the gradient is a constant."""
        return AffineBound(0.0, 0.0)


def row_distances_upper(rows: Array) -> Array:
    """Upper bounds of the distances of all pairs of rows, from their differences, (n, n)."""
    distances: Array = np.stack([row_norms_upper(rows - row) for row in rows])
    return distances * (1 + 2 * UNIT_ROUNDOFF)


def dot_products_error(
    rounding: Rounding, weight: Weights, bias: Weights, norm: AffineBound, reach: float
) -> AffineBound:
    """Bound of the error of a difference of two entries of W v + b, ||v|| <= norm.

    Each term meets at most as many roundings as its sum has, and one of the bias; operands may be
    cut to fewer bits, the result stored in fewer, and small numbers flushed to zero.

    Raises:
        BoundError: if a weight does not exist in the arithmetic, or the sum of absolute values,
            which bounds every partial sum, can be more than `LARGEST_LOGIT` within the reach.
    """
    arithmetic, n = rounding.arithmetic, int(weight.shape[1])
    if not arithmetic.operand_roundoff and not (
        arithmetic.holds(weight) and arithmetic.holds(bias)
    ):
        raise BoundError(f"a weight of the head is no normal number in {arithmetic.name}")
    growth = (1 + arithmetic.operand_roundoff) ** 2 * (1 + arithmetic.storage_roundoff) ** 2
    relative = ((1 + arithmetic.gamma(rounding.terms(n) + 1)) * growth - 1) * (1 + 1e-9)
    two_rows, two_biases = _two_largest(row_norms_upper(weight)), _two_largest(np.abs(bias))
    size = norm.times(two_rows).plus(AffineBound(two_biases, 0.0))
    check_size(size, reach, arithmetic)
    flushed = (4 * n + two_rows * n + 4) * arithmetic.smallest_normal + TINY
    return size.times(relative).plus(AffineBound(2 * flushed, 0.0))


def check_size(bound: AffineBound, reach: float, arithmetic: Arithmetic) -> None:
    """Raise BoundError if numbers of the head can be larger than `LARGEST_LOGIT`, or overflow."""
    limit = min(LARGEST_LOGIT, arithmetic.largest / 4)
    if not bound(np.array([reach]))[0] <= limit:
        raise BoundError(f"numbers of the head can be larger than {limit:.0e}")


def _two_largest(values: NDArray[Any]) -> float:
    """Sum of the two largest of some numbers that are not negative, rounded up."""
    return float(np.sort(values.astype(np.float64))[-2:].sum()) * MARGIN
