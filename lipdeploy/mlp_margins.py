"""By how much the class of an MLP head leads its rivals, around a batch of feature vectors.

Every number is a bound: computed in float64, with the error of that taken off.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.bounds import TINY, UNIT_ROUNDOFF, frobenius_upper, gamma, row_norms_upper
from lipdeploy.directed import round_down
from lipdeploy.heads import Array, Labels, Slack

if TYPE_CHECKING:
    from lipdeploy.mlp_head import MlpHead

Indices = NDArray[np.int64]

FUNCTION_ULPS = 8
"""Assumed accuracy, in units of the last place, of numpy's logaddexp, exp and division chains; and,
in units of u (1 + softplus), of an engine's softplus."""

PAIRS_AT_ONCE = 1 << 23
"""Most numbers of an intermediate array over pairs of an image and a rival."""

BISECTIONS, STEPS = 18, 8
"""How long the tight certificate searches; the proof does not depend on it."""


class MlpMargins:
    """Margins of a batch of feature vectors over their rivals.

    Args:
        head: the head.
        features: shape (batch, d).
        labels: shape (batch,).
        slack: what the margins must exceed.
    """

    def __init__(self, head: "MlpHead", features: Array, labels: Labels, slack: Slack) -> None:
        self.head, self.features, self.labels = head, features, labels
        self.first, self.first_bias, self.second, self.second_bias = head.exact
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
        """Radii of pairs by bisection on `dual_lower`, starting from the certified ones."""
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
            lower, start = dual_lower(margin, radius, curvature, start)
            holds = lower > (self.gap[rows] + self.slope * radius) * (1 + 1e-14)
            certified = np.where(holds, radius, certified)
            refused = np.where(holds, refused, radius)
        return certified


class _Margin:
    """g = z_y - z_j for pairs of an image and a rival."""

    def __init__(self, pairs: MlpMargins, rows: Indices, rivals: Indices) -> None:
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


def dual_lower(
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
