"""A canary: does this runtime compute in the arithmetic that its certificates assume?

Runtimes have been seen to compute in TF32, bfloat16 or with sums in float16 where float32 was asked
for. Before anything is certified, the engine itself runs fixed images, and its features are
compared with float64: an honest one is about as near as it was when it was exported.
"""

import numpy as np

from lipdeploy.artifact import Engine
from lipdeploy.engine_error import distances_upper
from lipdeploy.errors import ArithmeticMismatchError
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.runtimes import Pixels, Runtime

FACTOR = 20
"""How many times as far from float64 as at the export is still the same arithmetic: float32 and
TF32 are a factor of 1000 apart, orders of sums one of a few."""


def canary_pixels(size: int) -> Pixels:
    """Fixed images, whole numbers of 0 ... 255, shape (4, 3, n, n): noise and gradients."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, size, size))
    ramp = np.linspace(0, 255, size).round()
    colours = np.array([1.0, 0.5, 0.25])[:, None, None]
    gradients = [
        (colours * np.broadcast_to(r, (size, size))).round() for r in (ramp, ramp[:, None])
    ]
    pixels: Pixels = np.concatenate([noise, gradients]).astype(np.float32)
    return pixels


def canary_difference(network: FrozenNetwork, runtime: Runtime) -> float:
    """Largest l2 distance of features from float64; infinite where they are not finite."""
    pixels = canary_pixels(network.image_size)
    features, _ = runtime.run(pixels)
    distances = np.linalg.norm(features - network.features(pixels.astype(np.float64)), axis=1)
    largest = float(distances.max())
    return largest if np.isfinite(largest) else float("inf")


def check_canary(engine: Engine, runtime: Runtime) -> None:
    """Refuse a runtime whose arithmetic is not the one in the manifest.

    Raises:
        ArithmeticMismatchError: if its features are further from float64 than `FACTOR` times the
            difference at the export, or than is proven.
    """
    manifest = engine.manifest
    pixels = canary_pixels(engine.network.image_size).astype(np.float64)
    distances = distances_upper(pixels, engine.network.centre)
    bounds = manifest.engine_errors.features(distances)
    limit = float((bounds + manifest.reference_errors.features(distances)).max())
    if manifest.canary > 0:
        limit = min(limit, FACTOR * manifest.canary)
    difference = canary_difference(engine.network, runtime)
    if not difference <= limit:
        raise ArithmeticMismatchError(
            f"{runtime.description} does not compute in {manifest.arithmetic}: features differ "
            f"from float64 by {difference:.2g}, at most {limit:.2g} was expected; nothing can be "
            "certified with it. Use --device cpu or another --runtime, or leave out --certify"
        )
