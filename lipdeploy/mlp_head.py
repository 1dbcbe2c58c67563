"""The MLP head with one hidden layer, certified by curvature (Singla & Feizi, 2020 and 2022)."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lipdeploy.arithmetic import stored
from lipdeploy.bounds import (
    UNIT_ROUNDOFF,
    frobenius_upper,
    norm_upper,
    up,
)
from lipdeploy.directed import CLAIM, AffineBound, round_down
from lipdeploy.errors import BoundError, ShapeError
from lipdeploy.heads import (
    NO_SLACK,
    Array,
    Labels,
    Slack,
    Weights,
    check_affine,
    check_features,
    check_size,
    dot_products_error,
    row_distances_upper,
)
from lipdeploy.mlp_margins import FUNCTION_ULPS, MlpMargins
from lipdeploy.rounding import Product, Rounding

Indices = NDArray[np.int64]

PAIRWISE_CLASSES = 20
"""Up to this many classes the curvature is proven for each ordered pair, beyond for each class."""


@dataclass(frozen=True, eq=False)
class MlpHead:
    """Logits W2 softplus(W1 z + b1) + b2, certified by curvature (Singla & Feizi, 2020).

    Attributes:
        hidden_weight: W1, shape (hidden, d).
        hidden_bias: b1, shape (hidden,).
        weight: W2, shape (classes, hidden).
        bias: b2, shape (classes,).
        curvature: m, shape (classes, classes): the Hessian of logit y minus logit j is at least
            -m[y, j] times the identity (see `curvature_upper`).
        lipschitz: shape (classes, classes): Lipschitz constants of logit y minus logit j (see
            `lipschitz_upper`).
    """

    kind: ClassVar[str] = "mlp"
    hidden_weight: Weights
    hidden_bias: Weights
    weight: Weights
    bias: Weights
    curvature: Weights
    lipschitz: Weights

    def __post_init__(self) -> None:
        check_affine(self.hidden_weight, self.hidden_bias)
        check_affine(self.weight, self.bias)
        shapes = self.hidden_weight.shape[0], self.curvature.shape, self.lipschitz.shape
        pairs = (self.classes, self.classes)
        if shapes != (self.weight.shape[1], pairs, pairs):
            raise ShapeError(f"mlp head: hidden features, curvature, Lipschitz bounds of {shapes}")
        for table in (self.curvature, self.lipschitz):
            if not np.all(np.isfinite(table) & (table >= 0)):
                raise BoundError("a curvature or Lipschitz constant is negative or not finite")

    @property
    def features(self) -> int:
        """Length of a feature vector."""
        return int(self.hidden_weight.shape[1])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.weight.shape[0])

    def weights(self) -> dict[str, Weights]:
        """W1, b1, W2, b2 and the proven constants."""
        return {
            "hidden_weight": self.hidden_weight,
            "hidden_bias": self.hidden_bias,
            "weight": self.weight,
            "bias": self.bias,
            "curvature": self.curvature,
            "lipschitz": self.lipschitz,
        }

    @classmethod
    def proven(
        cls, hidden_weight: Weights, hidden_bias: Weights, weight: Weights, bias: Weights
    ) -> Self:
        """A head with its constants proven from its weights, rounded up to float32."""
        curvature = float32_upper(curvature_upper(hidden_weight, weight))
        lipschitz = float32_upper(lipschitz_upper(hidden_weight, weight))
        return cls(hidden_weight, hidden_bias, weight, bias, curvature, lipschitz)

    def stored_as(self, dtype: DTypeLike) -> Self:
        """With all weights rounded to `dtype`, the constants proven from the rounded ones."""
        arrays = (self.hidden_weight, self.hidden_bias, self.weight, self.bias)
        return self.proven(*(stored(array, dtype) for array in arrays))

    @cached_property
    def exact(self) -> tuple[Array, Array, Array, Array]:
        """W1, b1, W2 and b2 in float64."""
        arrays = (self.hidden_weight, self.hidden_bias, self.weight, self.bias)
        first, first_bias, second, second_bias = (a.astype(np.float64) for a in arrays)
        return first, first_bias, second, second_bias

    def logits(self, features: Array) -> Array:
        """Map features (batch, d) to logits (batch, classes)."""
        check_features(self, features)
        first, first_bias, second, second_bias = self.exact
        hidden = np.logaddexp(0.0, features @ first.T + first_bias)
        logits: Array = hidden @ second.T + second_bias
        return logits

    def logit_error(self, rounding: Rounding, norm: AffineBound, reach: float) -> AffineBound:
        """Errors of the hidden layer times ||w_y - w_j||, and those of the last products.

        Softplus is 1-Lipschitz, at most |p| + log 2, and assumed to be accurate to `FUNCTION_ULPS`
        times u (1 + softplus).
        """
        width = len(self.hidden_bias) ** 0.5
        before, error = self._before_softplus(rounding, norm)
        hidden = before.plus(error).plus(AffineBound(0.7 * width, 0.0))
        of_softplus = hidden.plus(AffineBound(width, 0.0))
        error = error.plus(of_softplus.times(FUNCTION_ULPS * rounding.entry_roundoff))
        distance = float(np.max(self.distances_upper))
        first = self._first_product
        largest = norm.times(first.absolute_norm_upper).plus(hidden)
        constants = max(float(self.lipschitz.max()), float(self.curvature.max()))
        check_size(largest.plus(AffineBound(constants, 0.0)), reach, rounding.arithmetic)
        last = dot_products_error(rounding, self.weight, self.bias, hidden.plus(error), reach)
        return error.times(distance).plus(last)

    def _before_softplus(
        self, rounding: Rounding, norm: AffineBound
    ) -> tuple[AffineBound, AffineBound]:
        """Bounds of the norm of W1 z + b1 and of its error."""
        if (
            not rounding.arithmetic.holds(self.hidden_bias)
            and not rounding.arithmetic.operand_roundoff
        ):
            raise BoundError(f"a bias is no normal number in {rounding.arithmetic.name}")
        first = rounding.product(self._first_product)
        bias = float(frobenius_upper(self.hidden_bias[None]))
        before = norm.times(first.norm_upper).plus(AffineBound(bias, 0.0))
        flushed = first.underflow + 2 * rounding.flushed(len(self.hidden_bias))
        error = norm.times(first.rounding_upper).plus(AffineBound(flushed, 0.0))
        return before, error.plus(before.plus(error).times(rounding.entry_roundoff))

    @cached_property
    def _first_product(self) -> Product:
        return Product(self.hidden_weight.T, len(self.hidden_bias))

    def slope_error(self, rounding: Rounding, norm: AffineBound) -> AffineBound:
        """||W1|| (error of p / 4 + that of the sigmoid) + gamma(h + 4) || |W1| ||.

        The sigmoid is 1/4-Lipschitz, at most 1, and assumed to be accurate to `FUNCTION_ULPS` u;
        the difference of two rows, the product with the sigmoid and storing are one rounding each.
        """
        first, arithmetic = self._first_product, rounding.arithmetic
        of_before = self._before_softplus(rounding, norm)[1].times(first.norm_upper / 4)
        of_sigmoid = (FUNCTION_ULPS + 4) * rounding.entry_roundoff * first.norm_upper
        sums = arithmetic.gamma(len(self.hidden_bias) + 4) + 4 * arithmetic.operand_roundoff
        rest = of_sigmoid + sums * first.absolute_norm_upper
        return of_before.plus(AffineBound(rest * (1 + 1e-9), 0.0))

    @cached_property
    def distances_upper(self) -> Array:
        """Upper bounds of ||w_y - w_j||, rows of W2, for all pairs; shape (classes, classes)."""
        return row_distances_upper(self.exact[2])

    def radii_lower(
        self, features: Array, labels: Labels, slack: Slack = NO_SLACK, *, tight: bool = False
    ) -> Array:
        """The smallest radius over all rivals, each the largest of two, with `tight` of three.

        *Lipschitz*: (g - gap) / (Lip + slope), for all rivals at once. *Closed form*, from
        g(z + d) >= g(z) - ||grad g|| ||d|| - m ||d||^2 / 2: with G = g - gap and
        S = ||grad g|| + slope the radius 2 G / (S + sqrt(S^2 + 2 m G)); only for rivals whose
        Lipschitz radius is below what the nearest one allows, the others cannot be the smallest.
        *Tight*: see `lipdeploy.mlp_margins.dual_lower`; only for rivals that can still be the
        smallest.
        """
        check_features(self, features)
        labels = labels.astype(np.int64)
        images = np.arange(len(features))
        pairs = MlpMargins(self, features, labels, slack)
        radii = pairs.lipschitz_radii()
        improved = np.zeros(radii.shape, dtype=bool)
        kinds = [pairs.closed_radii, pairs.dual_radii] if tight else [pairs.closed_radii]
        for better in kinds:
            improved[:] = False
            # First the rival that looks nearest; then every one that is nearer than that turns out.
            nearest = radii.argmin(axis=1)
            radii[images, nearest] = better(images, nearest, radii[images, nearest])
            improved[images, nearest] = True
            while True:
                limit = np.where(improved, radii, np.inf).min(axis=1, keepdims=True)
                rows, rivals = np.nonzero((radii < limit) & ~improved)
                if not len(rows):
                    break
                radii[rows, rivals] = better(rows, rivals, radii[rows, rivals])
                improved[rows, rivals] = True
        return round_down(radii.min(axis=1), relative=1e-13)


def float32_upper(values: Array) -> NDArray[np.float32]:
    """Numbers in float32 that are not below the given ones, and a little above (`CLAIM`)."""
    rounded: NDArray[np.float32] = (values * CLAIM).astype(np.float32)
    return np.where(values > 0, np.nextafter(rounded, np.float32(np.inf)), np.float32(0))


def lipschitz_upper(hidden_weight: Weights, weight: Weights) -> Array:
    """Lipschitz constants of z_y - z_j, shape (classes, classes).

    ||W1|| ||w_y - w_j||, since 0 <= softplus' <= 1.
    """
    distances = row_distances_upper(weight.astype(np.float64))
    constants: Array = norm_upper(hidden_weight) * distances * (1 + 1e-15)
    return constants


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
