"""From a radius in feature space to one of the image, rounded down at every step.

Statement *network*: let F be the real-arithmetic network that the stored weights define, x the
input, z the features that an engine returned, e >= ||z - phi(x)|| and L >= Lip(phi). If the head
keeps its class on the ball of radius rho around z, then for every real x' with
||x' - x|| < (rho - e) / L, F picks that class at x'.

Proof: ||phi(x') - z|| <= ||phi(x') - phi(x)|| + ||phi(x) - z|| < L (rho - e) / L + e = rho.
"""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipdeploy.artifact import Manifest
from lipdeploy.bounds import down, row_norms_upper
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.heads import Labels
from lipdeploy.rounding import round_down

Array = NDArray[np.float64]

GUARANTEES = ("network",)
"""The statements that can be asked for."""

ASSUMPTIONS = (
    "float64 arithmetic on the host follows the IEEE 754 standard model, in any order of sums",
    "the bounds in the engine file are those that export proved",
)
MLP_ASSUMPTION = "softplus and its derivative are accurate to 8 ulp in float64 on the host"


def network_radii(feature_radii: Array, feature_errors: Array, lipschitz_upper: float) -> Array:
    """(rho - e) / L, rounded down, 0 where it is negative or not finite; shape (batch,)."""
    return round_down((feature_radii - feature_errors) / lipschitz_upper)


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


def pixel_norms_upper(pixels: Array) -> Array:
    """Upper bounds of the l2 norms of images, shape (batch, 3, n, n) -> (batch,)."""
    return row_norms_upper(pixels.reshape(len(pixels), -1))


def certify(
    network: FrozenNetwork,
    bounds: Manifest,
    pixels: Array,
    features: Array,
    labels: Labels,
) -> Array:
    """Certified radii, in the units of the pixels, for what an engine returned; shape (batch,).

    Args:
        network: the network that the engine runs.
        bounds: the manifest with its proven bounds.
        pixels: the engine's input, shape (batch, 3, n, n).
        features: the engine's features, shape (batch, d).
        labels: the classes that were picked, shape (batch,).
    """
    reference_errors = bounds.reference_error(pixel_norms_upper(pixels))
    errors = feature_errors_upper(features, network.features(pixels), reference_errors)
    return network_radii(network.head.radii_lower(features, labels), errors, bounds.lipschitz_upper)


def scale_radius(radius: float, factor: float) -> float:
    """Radius / factor, rounded down."""
    return max(0.0, down(down(radius) / factor)) if radius > 0 else 0.0


def file_radius(radius: float, input_error: float, resize_norm_upper: float) -> float:
    """Radius around the decoded image, whose resized version the network saw within `input_error`.

    A change d of the image moves the input by R d, at most ||R|| ||d||; all in the same units.
    """
    return scale_radius(down(radius - input_error), resize_norm_upper)


def integer_budget(radius: float) -> int:
    """Largest K such that every 8-bit image with sum of squared differences <= K is covered.

    K = ceil((255 r)^2) - 1, in exact fractions, r in [0, 1] pixels; -1 for a radius of 0, which
    covers nothing, not even the image itself.
    """
    return math.ceil((255 * Fraction(radius)) ** 2) - 1
