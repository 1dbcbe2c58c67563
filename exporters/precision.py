"""What a lower precision costs in radius and gains in speed, measured before an engine is written.

Both are measured here and now: the engine and the one that would be written in float32 answer the
same images, and run in turns. What cannot run here is not guessed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lipdeploy.artifact import Engine
from lipdeploy.certificate import Answers, Certifier
from lipdeploy.exporters.libraries import has_own_arithmetic, is_imitated, why_not_itself
from lipdeploy.measuring import interleave
from lipdeploy.runtimes import Runtime

Pixels = NDArray[np.float32]

SECONDS = 1.0
"""About so long each of the two engines is timed."""

LEAST_ROUNDS = 3

MOST_IMAGES = 64
"""Of a call that is timed: with more an answer would take long, and say the same."""


@dataclass(frozen=True)
class Speed:
    """Two engines that ran in turns.

    Attributes:
        batch: images a call.
        lower: images a second of the engine, by the median call.
        float32: of the one in float32.
    """

    batch: int
    lower: float
    float32: float

    @property
    def gain(self) -> float:
        """How many times as fast the engine is; below 1 it is slower."""
        return self.lower / self.float32


@dataclass(frozen=True)
class PrecisionCost:
    """An engine of lower precision beside the one in float32.

    Attributes:
        precision: that was asked for.
        ran: what the engine ran on.
        is_imitated: whether that has other operations, and rounds their results.
        images: on which radii are compared.
        radius_255: mean certified radius of the engine, statement *network*, in units of 1/255;
            None where nothing here computes in its arithmetic.
        float32_255: that of the engine in float32.
        at_most_255: what rounding of the features takes of a radius by the model of the arithmetic.
        speed: None where the engine cannot run here.
        reason: why; else empty.
    """

    precision: str
    ran: str
    is_imitated: bool
    images: int
    radius_255: float | None
    float32_255: float
    at_most_255: float
    speed: Speed | None
    reason: str


Listener = Callable[[PrecisionCost], None]


def ignore_cost(cost: PrecisionCost) -> None:
    """Tell nobody."""


def precision_cost(
    lower: tuple[Engine, Runtime],
    float32: tuple[Engine, Runtime],
    images: Pixels,
    batch: int,
    at_most_255: float,
) -> PrecisionCost:
    """Compare an engine with the one in float32.

    Args:
        lower: the engine, and what runs it here.
        float32: the same network in float32, and what runs that.
        images: pixels, real ones where there are any, shape (count, 3, n, n), 0 ... 255.
        batch: images at a time that the engines are made for.
        at_most_255: see `PrecisionCost`.

    Raises:
        EngineError: if an engine fails.
    """
    engine, runtime = lower
    radius = mean_radius(*lower, images) if has_own_arithmetic(*lower) else None
    reason = why_not_itself(*lower)
    pixels = np.resize(images, (min(batch, MOST_IMAGES), *images.shape[1:]))
    return PrecisionCost(
        precision=engine.manifest.arithmetic,
        ran=runtime.description,
        is_imitated=is_imitated(runtime),
        images=len(images),
        radius_255=radius,
        float32_255=mean_radius(*float32, images),
        at_most_255=at_most_255,
        speed=None if reason else compare_speed(runtime, float32[1], pixels),
        reason=reason,
    )


def mean_radius(engine: Engine, runtime: Runtime, images: Pixels) -> float:
    """Mean certified radius of the statement *network*, in units of 1/255."""
    features, logits = runtime.run(images)
    answers = Answers(images.astype(np.float64), features, np.argmax(logits, axis=1))
    return float(np.mean(Certifier(engine.network, engine.manifest).network_radii(answers)))


def compare_speed(lower: Runtime, float32: Runtime, pixels: Pixels) -> Speed:
    """Time two runtimes in turns on the same batch."""
    calls = [partial(runtime.run, pixels) for runtime in (lower, float32)]
    first, second = interleave(calls, SECONDS, rounds=LEAST_ROUNDS)
    return Speed(len(pixels), len(pixels) / first.p50, len(pixels) / second.p50)
