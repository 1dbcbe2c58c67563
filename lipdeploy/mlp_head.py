"""The MLP head with one hidden layer, certified by curvature (Singla & Feizi, 2020 and 2022)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

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
from lipdeploy.rounding import CLAIM, AffineBound, Product, Rounding, round_down, stored

Indices = NDArray[np.int64]

FUNCTION_ULPS = 8
"""Assumed accuracy, in units of the last place, of numpy's logaddexp, exp and division chains; and,
in units of u (1 + softplus), of an engine's softplus."""

PAIRWISE_CLASSES = 20
"""Up to this many classes the curvature is proven for each ordered pair, beyond for each class."""

PAIRS_AT_ONCE = 1 << 23
"""Most numbers of an intermediate array over pairs of an image and a rival."""

BISECTIONS, STEPS = 18, 8
"""How long the tight certificate searches; the proof does not depend on it."""


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
        return row_distances_upper(self._exact[2])

    def radii_lower(
        self, features: Array, labels: Labels, slack: Slack = NO_SLACK, *, tight: bool = False
    ) -> Array:
        """The smallest radius over all rivals, each the largest of two, with `tight` of three.

        *Lipschitz*: (g - gap) / (Lip + slope), for all rivals at once. *Closed form*, from
        g(z + d) >= g(z) - ||grad g|| ||d|| - m ||d||^2 / 2: with G = g - gap and
        S = ||grad g|| + slope the radius 2 G / (S + sqrt(S^2 + 2 m G)); only for rivals whose
        Lipschitz radius is below what the nearest one allows, the others cannot be the smallest.
        *Tight*: see `_dual_lower`; only for rivals that can still be the smallest.
        """
        check_features(self, features)
        labels = labels.astype(np.int64)
        images = np.arange(len(features))
        pairs = _Pairs(self, features, labels, slack)
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


class _Pairs:
    """Margins of a batch of feature vectors over their rivals.

    Args:
        head: the head.
        features: shape (batch, d).
        labels: shape (batch,).
        slack: what the margins must exceed.
    """

    def __init__(self, head: MlpHead, features: Array, labels: Labels, slack: Slack) -> None:
        self.head, self.features, self.labels = head, features, labels
        self.first, self.first_bias, self.second, self.second_bias = head._exact
        self.hidden = _Hidden.at(features, self.first, self.first_bias)
        self.gap = np.broadcast_to(np.asarray(slack.gap, dtype=np.float64), labels.shape)
        self.slope = slack.slope

    def lipschitz_radii(self) -> Array:
        """Shape (batch, classes); infinite for the class itself."""
        v, error = self.hidden.values, self.hidden.values_error
        size = np.abs(self.second).T
        logits = v @ self.second.T + self.second_bias
        rounding = gamma(len(size) + 6) * ((v + error) @ size + np.abs(self.second_bias))
        slack = (error @ size + rounding) * (1 + 1e-10) + TINY
        index = self.labels[:, None]
        own = np.take_along_axis(logits - slack, index, axis=1)
        margins = own - (logits + slack) - self.gap[:, None]
        lipschitz = self.head.lipschitz[self.labels].astype(np.float64) + self.slope
        radii: Array = round_down(margins / (lipschitz * (1 + 1e-14) + TINY), 1e-13)
        np.put_along_axis(radii, index, np.inf, axis=1)
        return radii

    def closed_radii(self, rows: Indices, rivals: Indices, known: Array) -> Array:
        """Closed-form radii of pairs (image, rival), at least those known; shape (pairs,)."""
        return self._in_parts(self._closed, rows, rivals, known)

    def dual_radii(self, rows: Indices, rivals: Indices, known: Array) -> Array:
        """Radii of pairs by bisection on `_dual_lower`, starting from the certified ones."""
        return self._in_parts(self._dual, rows, rivals, known)

    def _in_parts(self, radii: Any, rows: Indices, rivals: Indices, known: Array) -> Array:  # noqa: ANN401
        size = max(1, PAIRS_AT_ONCE // max(self.first.shape))
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]
        return np.concatenate([radii(rows[part], rivals[part], known[part]) for part in parts])

    def _closed(self, rows: Indices, rivals: Indices, known: Array) -> Array:
        hidden = self.hidden.take(rows)
        margin = _Margin(self, rows, rivals)
        gap = np.maximum(margin.lower(hidden) - self.gap[rows], 0.0)
        gradient, error = margin.gradient(hidden)
        slope = (row_norms_upper(gradient) + error + self.slope) * (1 + 1e-14)
        curvature = self.head.curvature[self.labels[rows], rivals].astype(np.float64)
        radius = 2 * gap / (slope + np.sqrt(slope**2 + 2 * curvature * gap) + TINY)
        return np.maximum(round_down(radius, 1e-13), known)

    def _dual(self, rows: Indices, rivals: Indices, known: Array) -> Array:
        usable = np.isfinite(known) & (known > 0)
        radii = known.copy()
        if np.any(usable):
            radii[usable] = self._bisect(rows[usable], rivals[usable], known[usable])
        return radii

    def _bisect(self, rows: Indices, rivals: Indices, known: Array) -> Array:
        margin = _Margin(self, rows, rivals)
        curvature = self.head.curvature[self.labels[rows], rivals].astype(np.float64)
        certified, refused = known.copy(), 8 * known
        start: Array | None = None
        for attempt in range(BISECTIONS):
            # Radii of trained heads are a few per cent larger: look there first.
            weight = 0.01 if attempt == 0 else 0.5
            radius = certified + weight * (refused - certified)
            lower, start = _dual_lower(margin, radius, curvature, start)
            holds = lower > (self.gap[rows] + self.slope * radius) * (1 + 1e-14)
            certified = np.where(holds, radius, certified)
            refused = np.where(holds, refused, radius)
        return certified


class _Margin:
    """g = z_y - z_j for pairs of an image and a rival."""

    def __init__(self, pairs: _Pairs, rows: Indices, rivals: Indices) -> None:
        labels = pairs.labels[rows]
        self.pairs, self.features = pairs, pairs.features[rows]
        self.difference = pairs.second[labels] - pairs.second[rivals]
        self.offset = pairs.second_bias[labels] - pairs.second_bias[rivals]
        self.biases = np.abs(pairs.second_bias[labels]) + np.abs(pairs.second_bias[rivals])

    def lower(self, hidden: "_Hidden") -> Array:
        """Lower bound of g, shape (pairs,).

        Forming the difference of two rows is one rounding of each entry, of the sum and the offset
        two more: gamma(h + 6).
        """
        size = np.abs(self.difference)
        computed = np.einsum("ph,ph->p", self.difference, hidden.values) + self.offset
        spread = np.einsum("ph,ph->p", size, hidden.values_error)
        total = np.einsum("ph,ph->p", size, hidden.values + hidden.values_error)
        rounding = gamma(hidden.values.shape[1] + 6) * (total + self.biases)
        bound: Array = computed - (spread + rounding) * (1 + 1e-10) - TINY
        return bound

    def gradient(self, hidden: "_Hidden") -> tuple[Array, Array]:
        """W1^T (difference * softplus'), shape (pairs, d), and the norm of its error, (pairs,)."""
        first = self.pairs.first
        inner = self.difference * hidden.slopes
        size = np.abs(self.difference)
        inner_error = size * hidden.slopes_error + 4 * UNIT_ROUNDOFF * np.abs(inner)
        rounding = gamma(first.shape[0] + 1) * row_norms_upper(inner)
        error = self._first_size * (row_norms_upper(inner_error) + rounding) * (1 + 1e-10) + TINY
        return inner @ first, error

    @cached_property
    def _first_size(self) -> float:
        return float(frobenius_upper(self.pairs.first))

    def at(self, points: Array) -> "_Hidden":
        """The hidden layer at other points, shape (pairs, d)."""
        return _Hidden.at(points, self.pairs.first, self.pairs.first_bias)


def _dual_lower(
    margin: _Margin, radius: Array, curvature: Array, start: Array | None
) -> tuple[Array, Array]:
    """Lower bounds of the minimum of g over balls of these radii, and where they were proven.

    Theorem (weak duality): let l >= m and l >= 0, where the Hessian of g is at least -m. Then
    q(d) = g(z + d) + l (||d||^2 - r^2) / 2 is convex and q <= g on the ball, so for *any* point p

        min_(||d|| <= r) g(z + d) >= q(p) + min_(||d|| <= r) <grad q(p), d - p>
                                   = q(p) - <grad q(p), p> - r ||grad q(p)||.

    The point comes from the fixed-point iteration p = -grad g(z + p) / l, l = ||grad g|| / r, whose
    limit is a stationary point of g on the sphere; there grad q = 0 and the bound is g itself. A
    bad point gives a small bound, never a wrong one. Every sum and product of the last line is
    computed with its error taken off: the point is z + p as it is rounded, so p is known to a
    relative u; grad q inherits the error of grad g.
    """
    features = margin.features
    point = start if start is not None else np.zeros_like(features)
    for _ in range(STEPS if start is None else STEPS // 2):
        gradient, _ = margin.gradient(margin.at(features + point))
        multiplier = np.maximum(row_norms_upper(gradient) / (radius + TINY), curvature)
        point = -gradient / (multiplier[:, None] + TINY)
    moved = features + point
    hidden, shift = margin.at(moved), moved - features
    gradient, gradient_error = margin.gradient(hidden)
    multiplier = np.maximum(row_norms_upper(gradient) / (radius + TINY), curvature)
    tilted = gradient + multiplier[:, None] * shift
    length, tilt = row_norms_upper(shift), row_norms_upper(tilted)
    size = row_norms_upper(gradient) + multiplier * length
    tilt_error = (gradient_error + 6 * UNIT_ROUNDOFF * size) * (1 + 1e-10)
    quadratic = multiplier / 2 * (length**2 - radius**2)
    inner = np.einsum("pd,pd->p", tilted, shift)
    rounding = gamma(4 * features.shape[1] + 20) * (
        multiplier * (length**2 + radius**2) + tilt * (length + radius)
    )
    lost = tilt_error * (length + radius) + radius * tilt + rounding
    value = margin.lower(hidden)
    lower = value + quadratic - inner - lost * (1 + 1e-10)
    # The sum of these four has three roundings, of numbers no larger than these.
    terms = np.abs(value) + np.abs(quadratic) + np.abs(inner) + lost
    return np.where(np.isfinite(lower), lower - 8 * UNIT_ROUNDOFF * terms, -np.inf), point


@dataclass(frozen=True)
class _Hidden:
    """The hidden layer at a batch of features, with error bounds elementwise.

    Attributes:
        values: softplus of the pre-activations, shape (batch, hidden).
        values_error: bound of its distance from the exact values.
        slopes: the derivative of softplus there, in [0, 1].
        slopes_error: likewise.
    """

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
        error = gamma(features.shape[1] + 1) * scale * (1 + 1e-12) + TINY
        values = np.logaddexp(0.0, before)
        slopes = np.exp(before - values)
        relative = FUNCTION_ULPS * 2 * UNIT_ROUNDOFF
        # The exponent before - values has absolute error of a few ulps of |before|.
        exponent_error = relative * (np.abs(before) + values + 1) * (1 + 1e-12)
        slopes_error = error / 4 + slopes * (exponent_error + relative) * 1.01 + TINY
        return cls(values, error + relative * values + TINY, slopes, slopes_error)

    def take(self, rows: Indices) -> "_Hidden":
        """Those of some of the batch."""
        return _Hidden(
            self.values[rows], self.values_error[rows], self.slopes[rows], self.slopes_error[rows]
        )


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
