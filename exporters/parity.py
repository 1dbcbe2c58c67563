"""Comparing an engine with the float64 reference, right after writing it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.errors import ExportError
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.runtimes import Array, Runtime

Pixels = NDArray[np.float32]

RELATIVE_TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest norm of the inputs' feature vectors."""

RANDOM_INPUTS = 16


@dataclass(frozen=True)
class Parity:
    """How far an engine is from float64.

    Attributes:
        inputs: number of inputs compared.
        feature_difference: largest l2 distance of feature vectors.
        logit_difference: largest absolute difference of a logit.
        argmax_flips: inputs whose largest logit is another one.
        radius_cost: largest share of a radius that the difference takes, in units of 1/255.
    """

    inputs: int
    feature_difference: float
    logit_difference: float
    argmax_flips: int
    radius_cost: float


def probe_inputs(examples: NDArray[Any], size: int) -> Pixels:
    """Real images, random ones, and the corners of the pixel range; shape (count, 3, n, n)."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (RANDOM_INPUTS, 3, size, size))
    fractions = random.uniform(0, 255, (RANDOM_INPUTS, 3, size, size))
    corners = np.stack([np.zeros((3, size, size)), np.full((3, size, size), 255.0)])
    parts = [examples.reshape(-1, 3, size, size), noise, fractions, corners]
    return np.concatenate([part.astype(np.float32) for part in parts])


def compare(network: FrozenNetwork, runtime: Runtime, pixels: Pixels) -> Parity:
    """Run an engine and the reference on the same inputs, in batches of two sizes.

    Raises:
        ExportError: if the engine differs by more than `RELATIVE_TOLERANCE`, returns what is not
            finite, or flips a class that the difference does not explain.
    """
    expected = network.features(pixels.astype(np.float64))
    expected_logits = network.head.logits(expected)
    single, rest = runtime.run(pixels[:1]), runtime.run(pixels[1:])
    features, logits = (np.concatenate(pair) for pair in zip(single, rest, strict=True))
    distances = np.linalg.norm(features - expected, axis=1)
    logit_distances = np.abs(logits - expected_logits).max(axis=1)
    flipped = logits.argmax(axis=1) != expected_logits.argmax(axis=1)
    _check(distances, logit_distances, np.linalg.norm(expected, axis=1), flipped, expected_logits)
    return Parity(
        inputs=len(pixels),
        feature_difference=float(distances.max()),
        logit_difference=float(logit_distances.max()),
        argmax_flips=int(flipped.sum()),
        radius_cost=float(distances.max()) / network.lipschitz_upper,
    )


def _check(
    distances: Array,
    logit_distances: Array,
    norms: Array,
    flipped: NDArray[np.bool_],
    expected_logits: Array,
) -> None:
    limit = RELATIVE_TOLERANCE * norms.max()
    largest = max(distances.max(), logit_distances.max())
    if not largest <= limit:
        raise ExportError(
            f"the engine differs from float64 by {largest:.3g}, limit {limit:.3g}; this machine's "
            "ONNX Runtime computes something else: check its version with 'pip show onnxruntime'"
        )
    top = np.sort(expected_logits, axis=1)
    is_tie = top[:, -1] - top[:, -2] <= 2 * logit_distances
    if np.any(flipped & ~is_tie):
        raise ExportError("the engine picks other classes than float64 on inputs without a tie")
