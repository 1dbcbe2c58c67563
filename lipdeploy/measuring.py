"""Engines side by side: how long their calls take, and how far their answers differ.

They take turns, round after round, so that whatever else the machine does hits all alike.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lipdeploy.datasets import LabelledSources
from lipdeploy.errors import UsageError
from lipdeploy.evaluation import Evaluation, Outcome, outcomes
from lipdeploy.images import ImageSource, NetworkInput, network_input
from lipdeploy.prediction import Prediction
from lipdeploy.predictor import Predictor
from lipdeploy.runtimes import Array

WARM_UP = 2
"""Calls before anything is measured: memory is reserved, the order of sums is tested."""

LEAST_ROUNDS = 5

TURNS = 10
"""In so many turns the time of a function is cut."""

PAUSE = 0.005
"""Seconds between turns, in which the waiting threads of the one before fall asleep."""

Function = Callable[[], object]


@dataclass(frozen=True)
class Latency:
    """How long calls took: their number, and quantiles in seconds."""

    calls: int
    p25: float
    p50: float
    p75: float
    p95: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        """From the time of each call."""
        return cls(len(seconds), *np.quantile(seconds, (0.25, 0.5, 0.75, 0.95)).tolist())


@dataclass(frozen=True)
class Timed:
    """How fast an engine is at one batch size.

    Attributes:
        batch: images a call.
        engine: of the runtime: from pixels in memory to features and logits.
        certified: of the same with certificates, from pixels to predictions.
    """

    batch: int
    engine: Latency
    certified: Latency

    @property
    def images_per_second(self) -> float:
        """Of the engine alone, by its median."""
        return self.batch / self.engine.p50

    @property
    def certified_per_second(self) -> float:
        """With certificates, by the median."""
        return self.batch / self.certified.p50


@dataclass(frozen=True)
class Answered:
    """What an engine answered on a test set.

    Attributes:
        data: name of the test set.
        evaluation: right and certified answers.
        logit_difference: largest from those of the first engine, over images and classes; infinite
            where only one of the two gave finite logits, None for the first engine itself.
    """

    data: str
    evaluation: Evaluation
    logit_difference: float | None


def interleave(
    functions: Sequence[Function],
    seconds: float,
    announce: Callable[[str], None] = lambda text: None,
    *,
    rounds: int = LEAST_ROUNDS,
) -> list[Latency]:
    """Time functions in rounds, for about `seconds` each.

    Args:
        functions: what is called.
        seconds: for each of them.
        announce: told which round begins.
        rounds: at least so many.
    """
    announce("warm up")
    for function in functions:
        for _ in range(WARM_UP):
            function()
    times: list[list[float]] = [[] for _ in functions]
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < seconds * len(functions):
        done += 1
        announce(f"measure: round {done}")
        for position in range(len(functions)):
            # From another first one on: nobody's turn always follows the same other turn.
            index = (position + done) % len(functions)
            times[index] += _turn(functions[index], seconds / TURNS)
    return [Latency.of(calls) for calls in times]


def _turn(function: Function, seconds: float) -> list[float]:
    """Times of calls for so long; where there are several, the first is not among them."""
    time.sleep(PAUSE)
    calls: list[float] = []
    now = time.perf_counter()
    end = now + seconds
    while now < end:
        start = now
        function()
        now = time.perf_counter()
        calls.append(now - start)
    return calls[1:] or calls


def time_engines(
    predictors: Sequence[Predictor],
    batches: Sequence[int],
    seconds: float,
    announce: Callable[[str], None] = lambda text: None,
) -> list[list[Timed]]:
    """Time each engine at each batch size, on random images.

    Args:
        predictors: that certify.
        batches: images a call.
        seconds: for each engine and batch size, half of it with certificates.
        announce: told what is done.

    Returns:
        For each predictor its times, in the order of `batches`.

    Raises:
        UsageError: if a batch is larger than what a predictor ever gives its engine.
    """
    cases = [(predictor, batch) for predictor in predictors for batch in batches]
    functions: list[Function] = []
    for predictor, batch in cases:
        if batch > predictor.batch_size:
            raise UsageError(
                f"--batch {batch}: {predictor.model} takes at most {predictor.batch_size} images "
                "at a time, because they become very large inside of it"
            )
        functions += _calls(predictor, random_inputs(batch, predictor.network.image_size))
    latencies = iter(interleave(functions, seconds / 2, announce))
    timed = [Timed(batch, next(latencies), next(latencies)) for _, batch in cases]
    return [timed[start : start + len(batches)] for start in range(0, len(cases), len(batches))]


def _calls(predictor: Predictor, inputs: list[NetworkInput]) -> tuple[Function, Function]:
    """What is timed: the runtime, and all of a prediction."""
    pixels = np.stack([item.pixels for item in inputs])
    return lambda: predictor.runtime.run(pixels), lambda: predictor.answer_batch(inputs)


def random_inputs(count: int, side: int) -> list[NetworkInput]:
    """Images of noise; always the same."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [network_input(image, side) for image in images]


def compare_answers(
    predictors: Sequence[Predictor],
    images: LabelledSources[ImageSource],
    watch: Callable[[Iterable[Outcome]], Iterable[Outcome]] = lambda outcomes: outcomes,
) -> Iterator[Answered]:
    """What each engine answers on the same images.

    Args:
        predictors: that certify; all have the classes of the images, in any order.
        images: labelled images.
        watch: passes the outcomes of each engine on.

    Raises:
        DatasetError: if an engine has other classes than the images.
    """
    first: Array | None = None
    for predictor in predictors:
        classes = predictor.manifest.classes
        evaluation, logits = Evaluation(predictor.statements), []
        for outcome in watch(outcomes(predictor, images.in_order_of(classes))):
            evaluation.add(outcome)
            logits.append(_logits(outcome, len(classes)))
        found = np.array(logits)[:, [classes.index(name) for name in images.classes]]
        difference = None if first is None else largest_difference(first, found)
        yield Answered(images.name, evaluation, difference)
        first = found if first is None else first


def _logits(outcome: Outcome, classes: int) -> Sequence[float]:
    """Not a number each where there is no answer."""
    result = outcome.result
    return result.logits if isinstance(result, Prediction) else (math.nan,) * classes


def largest_difference(first: Array, other: Array) -> float:
    """Largest absolute difference of two arrays of logits, shape (images, K).

    Infinite where an image has finite logits in one of them only; 0 where none has any.
    """
    answered = np.isfinite(first).all(axis=1)
    if not np.array_equal(answered, np.isfinite(other).all(axis=1)):
        return math.inf
    return float(np.abs(first[answered] - other[answered]).max(initial=0.0))
