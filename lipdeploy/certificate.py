"""From a radius in feature space to one of the image, rounded down at every step.

Let F be the real-arithmetic network that the stored weights define, phi its body, x the input, z
the features that an engine returned, y the class that was printed, L >= Lip(phi). "The class leads
by g on a ball of radius t" means that there, for every rival, its exact logit is larger by more
than g.

*network*: let e >= ||z - phi(x)||. If y leads by 0 on the ball of radius t around z, then for every
real x' with ||x' - x|| < (t - e) / L, F picks y at x'.

    Proof: ||phi(x') - z|| <= ||phi(x') - phi(x)|| + ||phi(x) - z|| < L (t - e) / L + e = t.

*no certified flip* follows: if x' has a positive radius, too, then F picks at x' what is printed
there. So if x' is nearer to x than the radius of x, both printed classes are y.

*program*: let e(s) = a + b s bound the distance between computed and exact features, and
f(s) = p + q s the error of a computed difference of two logits given the computed features, at
every input whose distance from the colour c is at most s (`lipdeploy.engine_error`). With
s = ||x - c||, if for all u < t the class y leads by f(s) + q u / (L + b) at distance u from z, then
for every input x' with ||x' - x|| < r = (t - 2 e(s)) / (L + b), the engine itself prints y.

    Proof: let d = ||x' - x||, so that ||x' - c|| <= s + d. The engine's features z' at x' satisfy
    ||z' - z|| <= e(s + d) + L d + e(s) = 2 e(s) + (L + b) d =: u < t. There y leads, in exact
    logits, by more than f(s) + q u / (L + b) >= f(s) + q d = f(s + d), which is what computing the
    difference of two logits at z' can be wrong by. So its computed logit is the largest.

*network* compares z with the float64 reference, whatever the engine does: e is that distance plus
the proven error of float64. *program* compares nothing: it is a statement about an arithmetic.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lipdeploy.artifact import Manifest
from lipdeploy.bounds import down, row_norms_upper
from lipdeploy.directed import round_down
from lipdeploy.engine_error import EngineErrors, distances_upper, reach
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.heads import NO_SLACK, Labels, Slack

Array = NDArray[np.float64]
Guarantee = Literal["program", "network", "no-certified-flip"]
GUARANTEES: tuple[Guarantee, ...] = get_args(Guarantee)
"""The statements that can be asked for, the strongest first."""

HOST = "float64 arithmetic on the host follows the IEEE 754 standard model, in any order of sums"
FILE = "the bounds in the engine file are those that export proved ('lipdeploy verify' proves them)"
MLP_HOST = "softplus and its derivative are accurate to 8 ulp in float64 on the host"
MLP_ENGINE = "softplus s in the engine is accurate to 8 u (1 + s)"
ENGINE = "the engine runs its graph as it is, in IEEE 754 {} or with fused multiply-adds"
ORDER = {
    "any-order": "its sums may be in any order",
    "same-order": "each matrix product adds the terms of all outputs of one input in the same "
    "order (tested on this machine by permuting rows and columns)",
    "blocked": "its sums may be in any order; the graph keeps them short",
}


def assumptions(guarantee: str, rounding: str, *, is_mlp: bool) -> tuple[str, ...]:
    """What a statement rests on, for an engine that computes as `rounding` names it."""
    host = [HOST, *([MLP_HOST] if is_mlp else [])]
    if guarantee != "program":
        return (*host, FILE)
    arithmetic, accumulation = rounding.split()
    engine = [ENGINE.format(arithmetic), ORDER[accumulation], *([MLP_ENGINE] if is_mlp else [])]
    return (*engine, *host, FILE)


@dataclass(frozen=True)
class Answers:
    """What an engine returned for a batch.

    Attributes:
        pixels: its input, shape (batch, 3, n, n), 0 ... 255.
        features: shape (batch, d).
        labels: the classes that were picked, shape (batch,).
    """

    pixels: Array
    features: Array
    labels: Labels


@dataclass(frozen=True, eq=False)
class Certifier:
    """Certified radii, in the units of the pixels, of what an engine returned.

    Attributes:
        network: the network that the engine runs.
        bounds: the manifest with its proven bounds.
        tight: whether the head may take longer to prove more.
    """

    network: FrozenNetwork
    bounds: Manifest
    tight: bool = False

    def network_radii(self, answers: Answers) -> Array:
        """Radii of the statement *network*, shape (batch,); evaluates the float64 reference."""
        reference = self.network.features(answers.pixels)
        distances = distances_upper(answers.pixels, self.network.centre)
        of_reference = self.bounds.reference_errors.features(distances)
        errors = feature_errors_upper(answers.features, reference, of_reference)
        radii = self._feature_radii(answers, NO_SLACK)
        return round_down((radii - errors) / self.bounds.lipschitz_upper)

    def program_radii(self, answers: Answers, errors: EngineErrors) -> Array:
        """Radii of the statement *program* under these error bounds, shape (batch,).

        0 beyond the reach of the proof that nothing overflows; never larger than that reach.
        """
        distances = distances_upper(answers.pixels, self.network.centre)
        growth = (self.bounds.lipschitz_upper + errors.features.slope) * (1 + 1e-15)
        slack = Slack(errors.logits(distances), errors.logits.slope / growth * (1 + 1e-15))
        radii = self._feature_radii(answers, slack) - 2 * errors.features(distances)
        limit = reach(self.network, self.bounds.rounding.arithmetic)
        return np.where(distances < limit, np.minimum(round_down(radii / growth), limit), 0.0)

    def _feature_radii(self, answers: Answers, slack: Slack) -> Array:
        """Radii in feature space; 0 where an engine returned what is not finite."""
        is_finite = np.all(np.isfinite(answers.features), axis=1)
        features = np.where(is_finite[:, None], answers.features, 0.0)
        head = self.network.head
        radii = head.radii_lower(features, answers.labels, slack, tight=self.tight)
        return np.where(is_finite, radii, 0.0)


def feature_errors_upper(engine: Array, reference: Array, reference_errors: Array) -> Array:
    """Upper bounds of ||z - phi(x)||: measured distance to float64, plus the error of float64.

    Nothing is assumed of the engine: whatever it returned is compared.

    Args:
        engine: features from the engine, shape (batch, d).
        reference: features in float64, shape (batch, d).
        reference_errors: upper bounds of their own error, shape (batch,).
    """
    distances = row_norms_upper(engine - reference) * (1 + 2.0**-52)
    return (distances + reference_errors) * (1 + 1e-14)


def scale_radius(radius: float, factor: float) -> float:
    """Radius / factor, rounded down."""
    return max(0.0, down(down(radius) / factor)) if radius > 0 else 0.0


def file_radius(radius: float, input_error: float, resize_norm_upper: float) -> float:
    """Radius around the decoded image, such that inputs computed from images in it are covered.

    A change d of the image moves the exact input by R d, at most ||R|| ||d||, and both inputs are
    computed within `input_error`; all in the same units.
    """
    return scale_radius(down(radius - 2 * input_error), resize_norm_upper)


def integer_budget(radius: float) -> int:
    """Largest K such that every 8-bit image with sum of squared differences <= K is covered.

    K = ceil((255 r)^2) - 1, in exact fractions, r in [0, 1] pixels; -1 for a radius of 0, which
    covers nothing, not even the image itself.
    """
    return math.ceil((255 * Fraction(radius)) ** 2) - 1
