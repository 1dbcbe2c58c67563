"""Comparing an engine with the float64 reference, right after writing it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.artifact import Manifest
from lipdeploy.engine_error import distances_upper
from lipdeploy.errors import ExportError
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.runtimes import Array, Runtime

Pixels = NDArray[np.float32]

RELATIVE_TOLERANCES = {"float32": 1e-4, "tf32": 2e-2, "float16": 2e-2, "bfloat16": 0.15}
"""Largest accepted difference of a logit, relative to the norm of the feature vector."""

RANDOM_INPUTS = 16


@dataclass(frozen=True)
class Parity:
    """How far an engine is from float64.

    Attributes:
        inputs: number of inputs compared.
        feature_difference: largest l2 distance of feature vectors.
        share_of_bound: largest ratio of that distance to what is proven.
        logit_difference: largest absolute difference of a logit.
        argmax_flips: inputs whose largest logit is another one.
        radius_cost: largest share of a radius that the difference takes, in units of 1/255.
    """

    inputs: int
    feature_difference: float
    share_of_bound: float
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


def hostile_inputs(size: int) -> Pixels:
    """Inputs that are no images: far outside of 0 ... 255, subnormal, and all alike."""
    random = np.random.default_rng(1)
    far = random.uniform(-2000, 2000, (2, 3, size, size))
    tiny = random.uniform(-1, 1, (2, 3, size, size)) * 1e-39
    alike = np.full((1, 3, size, size), 128.0)
    return np.concatenate([far, tiny, alike]).astype(np.float32)


def compare(network: FrozenNetwork, manifest: Manifest, runtime: Runtime, pixels: Pixels) -> Parity:
    """Run an engine and the reference on the same inputs, in batches of two sizes.

    Raises:
        ExportError: if the engine's features differ by more than is proven of its arithmetic, its
            logits by more than `RELATIVE_TOLERANCES`, if it returns what is not finite, or flips a
            class that the difference does not explain.
    """
    expected = network.features(pixels.astype(np.float64))
    expected_logits = network.head.logits(expected)
    single, rest = runtime.run(pixels[:1]), runtime.run(pixels[1:])
    features, logits = (np.concatenate(pair) for pair in zip(single, rest, strict=True))
    distances = np.linalg.norm(features - expected, axis=1)
    from_centre = distances_upper(pixels.astype(np.float64), network.centre)
    bounds = manifest.engine_errors.features(from_centre)
    bounds = bounds + manifest.reference_errors.features(from_centre)
    if not np.all(distances <= bounds):
        worst = np.argmax(np.nan_to_num(distances - bounds, nan=np.inf))
        raise ExportError(
            f"the engine's features differ from float64 by {distances[worst]:.3g}, proven for "
            f"{manifest.arithmetic} is at most {bounds[worst]:.3g}: {runtime.description} computes "
            "something else"
        )
    logit_distances = np.abs(logits - expected_logits).max(axis=1)
    norms = np.linalg.norm(expected, axis=1)
    limits = RELATIVE_TOLERANCES[manifest.arithmetic] * np.maximum(norms, np.median(norms))
    _check_logits(logits, expected_logits, limits, runtime)
    return Parity(
        inputs=len(pixels),
        feature_difference=float(distances.max()),
        share_of_bound=float((distances / bounds).max()),
        logit_difference=float(logit_distances.max()),
        argmax_flips=int((logits.argmax(axis=1) != expected_logits.argmax(axis=1)).sum()),
        radius_cost=float(distances.max()) / network.lipschitz_upper,
    )


def _check_logits(logits: Array, expected: Array, limits: Array, runtime: Runtime) -> None:
    differences = np.abs(logits - expected).max(axis=1)
    if not np.all(differences <= limits):
        worst = np.argmax(np.nan_to_num(differences - limits, nan=np.inf))
        raise ExportError(
            f"the engine's logits differ from float64 by {differences[worst]:.3g}, limit "
            f"{limits[worst]:.3g}: {runtime.description} computes something else"
        )
    top = np.sort(expected, axis=1)
    is_tie = top[:, -1] - top[:, -2] <= 2 * differences
    if np.any((logits.argmax(axis=1) != expected.argmax(axis=1)) & ~is_tie):
        raise ExportError("the engine picks other classes than float64 on inputs without a tie")
