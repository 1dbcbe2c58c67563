"""Classification heads: logits, and the radius in feature space on which the class cannot change.

Radii hold against *all* rivals and count the rounding of their own float64 evaluation; what cannot
be shown is 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lipdeploy.bounds import (
    TINY,
    UNIT_ROUNDOFF,
    frobenius_upper,
    gamma,
    norm_upper,
    row_norms_upper,
    up,
)
from lipdeploy.errors import BoundError, ShapeError
from lipdeploy.rounding import MARGIN, round_down

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Weights = NDArray[Any]

FUNCTION_ULPS = 8
"""Assumed accuracy, in units of the last place, of numpy's logaddexp, exp and division chains."""

PAIRWISE_CLASSES = 20
"""Up to this many classes the curvature is proven for each ordered pair, beyond for each class."""


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

    def radii_lower(self, features: Array, labels: Labels) -> Array:
        """Radii of l2 balls around `features` on which `labels` are the strict argmax."""


def check_features(head: Head, features: Array) -> None:
    """Raise ShapeError unless features are (batch, d)."""
    if features.ndim != 2 or features.shape[1] != head.features:
        raise ShapeError(
            f"got features of shape {features.shape}, expected (batch, {head.features})"
        )


def _check_affine(weight: Weights, bias: Weights) -> None:
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
        _check_affine(self.weight, self.bias)

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
        return replace(self, weight=self.weight.astype(dtype), bias=self.bias.astype(dtype))

    def logits(self, features: Array) -> Array:
        """Map features (batch, d) to logits (batch, classes)."""
        check_features(self, features)
        logits: Array = features @ self._weight.T + self.bias.astype(np.float64)
        return logits

    @cached_property
    def _weight(self) -> Array:
        return self.weight.astype(np.float64)

    @cached_property
    def _distances_upper(self) -> Array:
        """||w_y - w_j|| for all pairs, from the differences; shape (classes, classes)."""
        rows = [row_norms_upper(self._weight - row) for row in self._weight]
        distances: Array = np.stack(rows) * (1 + 2 * UNIT_ROUNDOFF)
        return distances

    def radii_lower(self, features: Array, labels: Labels) -> Array:
        """The smallest (z_y - z_j) / ||w_y - w_j||_2 over all rivals j (Tsuzuku et al., 2018).

        A computed logit is within gamma(d + 1) (||w|| ||z|| + |b|) of the exact one, by
        Cauchy-Schwarz; that is taken off both sides of each margin. Taking it off and subtracting
        are three more roundings, of numbers of the size of the logits: gamma(d + 4).

        Args:
            features: shape (batch, d).
            labels: class indices, shape (batch,).

        Returns:
            Shape (batch,), rounded down; 0 where the label is not the strict argmax.
        """
        logits = self.logits(features)
        norms = row_norms_upper(features)
        scale = norms[:, None] * row_norms_upper(self._weight) + np.abs(self.bias)
        slack = gamma(self.features + 4) * scale * MARGIN + TINY
        index = labels[:, None]
        own = np.take_along_axis(logits - slack, index, axis=1)
        margins = own - (logits + slack)
        radii = margins / self._distances_upper[labels]
        np.put_along_axis(radii, index, np.inf, axis=1)
        return round_down(np.min(radii, axis=1))


@dataclass(frozen=True, eq=False)
class MlpHead:
    """Logits W2 softplus(W1 z + b1) + b2, certified by curvature (Singla & Feizi, 2020).

    Attributes:
        hidden_weight: W1, shape (hidden, d).
        hidden_bias: b1, shape (hidden,).
        weight: W2, shape (classes, hidden).
        bias: b2, shape (classes,).
        curvature: m, shape (classes, classes), float64: the Hessian of logit y minus logit j is at
            least -m[y, j] times the identity (see `curvature_upper`).
    """

    kind: ClassVar[str] = "mlp"
    hidden_weight: Weights
    hidden_bias: Weights
    weight: Weights
    bias: Weights
    curvature: Array

    def __post_init__(self) -> None:
        _check_affine(self.hidden_weight, self.hidden_bias)
        _check_affine(self.weight, self.bias)
        shapes = self.hidden_weight.shape[0], self.curvature.shape
        if shapes != (self.weight.shape[1], (self.classes, self.classes)):
            raise ShapeError(f"mlp head: hidden features and curvature of shape {shapes}")
        if not np.all(np.isfinite(self.curvature) & (self.curvature >= 0)):
            raise BoundError("a curvature constant is negative or not finite")

    @property
    def features(self) -> int:
        """Length of a feature vector."""
        return int(self.hidden_weight.shape[1])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.weight.shape[0])

    def weights(self) -> dict[str, Weights]:
        """W1, b1, W2, b2 and the proven curvature."""
        return {
            "hidden_weight": self.hidden_weight,
            "hidden_bias": self.hidden_bias,
            "weight": self.weight,
            "bias": self.bias,
            "curvature": self.curvature,
        }

    @classmethod
    def proven(
        cls, hidden_weight: Weights, hidden_bias: Weights, weight: Weights, bias: Weights
    ) -> Self:
        """A head with the curvature proven from its weights."""
        curvature = curvature_upper(hidden_weight, weight)
        return cls(hidden_weight, hidden_bias, weight, bias, curvature)

    def stored_as(self, dtype: DTypeLike) -> Self:
        """With all weights rounded to `dtype`, the curvature proven from the rounded ones."""
        arrays = (self.hidden_weight, self.hidden_bias, self.weight, self.bias)
        return self.proven(*(array.astype(dtype) for array in arrays))

    @cached_property
    def _exact(self) -> tuple[Array, Array, Array, Array]:
        arrays = (self.hidden_weight, self.hidden_bias, self.weight, self.bias)
        first, first_bias, second, second_bias = (a.astype(np.float64) for a in arrays)
        return first, first_bias, second, second_bias

    def logits(self, features: Array) -> Array:
        """Map features (batch, d) to logits (batch, classes)."""
        check_features(self, features)
        first, first_bias, second, second_bias = self._exact
        hidden = np.logaddexp(0.0, features @ first.T + first_bias)
        logits: Array = hidden @ second.T + second_bias
        return logits

    def radii_lower(self, features: Array, labels: Labels) -> Array:
        """The smallest 2 g / (||grad g|| + sqrt(||grad g||^2 + 2 m g)) over all rivals.

        g = z_y - z_j obeys g(z + d) >= g(z) - ||grad g|| ||d|| - m ||d||^2 / 2, which is positive
        for ||d|| below that. g is rounded down, ||grad g|| and m are rounded up.

        Args:
            features: shape (batch, d).
            labels: class indices, shape (batch,).

        Returns:
            Shape (batch,), rounded down; 0 where the label is not the strict argmax.
        """
        check_features(self, features)
        hidden = _Hidden.at(features, *self._exact[:2])
        second, second_bias = self._exact[2:]
        radii = np.full(len(features), np.inf)
        for rival in range(self.classes):
            difference = second[labels] - second[rival]
            offset = second_bias[labels] - second_bias[rival]
            gap = hidden.gap_lower(difference, offset, second_bias, labels, rival)
            slope = hidden.slope_upper(difference)
            curvature = self.curvature[labels, rival]
            positive = np.maximum(gap, 0.0)
            root = np.sqrt(slope**2 + 2 * curvature * positive)
            radius = 2 * positive / (slope + root + TINY)
            radii = np.where(labels == rival, radii, np.minimum(radii, radius))
        return round_down(radii, relative=1e-13)


@dataclass(frozen=True)
class _Hidden:
    """The hidden layer at a batch of features, with error bounds elementwise.

    Attributes:
        first: W1.
        values: softplus of the pre-activations, shape (batch, hidden).
        values_error: bound of its distance from the exact values.
        slopes: the derivative of softplus there, in [0, 1].
        slopes_error: likewise.
    """

    first: Array
    values: Array
    values_error: Array
    slopes: Array
    slopes_error: Array

    @classmethod
    def at(cls, features: Array, first: Array, bias: Array) -> "_Hidden":
        """Evaluate. Softplus is 1-Lipschitz, its derivative 1/4-Lipschitz."""
        before = features @ first.T + bias
        norms = row_norms_upper(features)[:, None]
        scale = norms * row_norms_upper(first) + np.abs(bias)
        error = gamma(features.shape[1] + 1) * scale * MARGIN + TINY
        values = np.logaddexp(0.0, before)
        slopes = np.exp(before - values)
        relative = FUNCTION_ULPS * 2 * UNIT_ROUNDOFF
        # The exponent before - values has absolute error of a few ulps of |before|.
        exponent_error = relative * (np.abs(before) + values + 1) * MARGIN
        slopes_error = error / 4 + slopes * (exponent_error + relative) * 1.01 + TINY
        return cls(first, values, error + relative * values + TINY, slopes, slopes_error)

    def gap_lower(
        self, difference: Array, offset: Array, bias: Array, labels: Labels, rival: int
    ) -> Array:
        """Lower bound of g = difference . softplus + offset, shape (batch,)."""
        size = np.abs(difference)
        computed = np.einsum("bh,bh->b", difference, self.values) + offset
        spread = np.einsum("bh,bh->b", size, self.values_error)
        total = np.einsum("bh,bh->b", size, self.values + self.values_error)
        parts = np.abs(bias[labels]) + abs(bias[rival])
        rounding = gamma(self.values.shape[1] + 6) * (total + parts)
        lower: Array = computed - (spread + rounding) * (1 + 1e-10) - TINY
        return lower

    def slope_upper(self, difference: Array) -> Array:
        """Upper bound of ||grad g|| = ||W1^T (difference * softplus')||, shape (batch,)."""
        inner = difference * self.slopes
        gradient = inner @ self.first
        inner_error = np.abs(difference) * self.slopes_error + 4 * UNIT_ROUNDOFF * np.abs(inner)
        size = float(frobenius_upper(self.first))
        error = row_norms_upper(inner_error) + gamma(self.first.shape[0] + 1) * row_norms_upper(
            inner
        )
        upper: Array = (row_norms_upper(gradient) + size * error) * (1 + 1e-10) + TINY
        return upper


def curvature_upper(hidden_weight: Weights, weight: Weights) -> Array:
    """Proven curvature constants of an MLP head, shape (classes, classes).

    The Hessian of g = z_y - z_j is W1^T diag(a s) W1 with a = w_y - w_j and 0 <= s <= 1/4 the
    second derivative of softplus, so it is at least -W1^T diag(a^-) W1 / 4, a^- the negative part.
    The largest eigenvalue of that is ||diag(sqrt(a^- / 4)) W1||^2, bounded by residual. Beyond
    `PAIRWISE_CLASSES` classes one constant a class serves all rivals: the largest a^- of each
    hidden unit over the rivals.

    Args:
        hidden_weight: W1, shape (hidden, d).
        weight: W2, shape (classes, hidden).
    """
    first, second = hidden_weight.astype(np.float64), weight.astype(np.float64)
    classes = len(second)
    result = np.zeros((classes, classes))
    for label in range(classes):
        negative = np.maximum(second - second[label], 0.0)
        if classes > PAIRWISE_CLASSES:
            result[label] = _weighted_norm_squared_upper(first, negative.max(axis=0))
            continue
        for rival in range(classes):
            if rival != label:
                result[label, rival] = _weighted_norm_squared_upper(first, negative[rival])
    return result


def _weighted_norm_squared_upper(first: Array, negative: Array) -> float:
    """Upper bound of ||diag(sqrt(negative / 4)) first||^2; entries carry at most 3 roundings."""
    weighted = np.sqrt(negative / 4)[:, None] * first
    norm = norm_upper(weighted) + 4 * UNIT_ROUNDOFF * float(frobenius_upper(weighted))
    return up(up(norm) ** 2 * (1 + 1e-15))


HEADS: Mapping[str, type[Head]] = {kind.kind: kind for kind in (LinearHead, MlpHead)}
