"""What becomes of answers when images are corrupted, and whether certificates hold on the way.

All of it on images of 8 bits of the network's input size: an image of another size is resized and
rounded first, then corrupted. A certificate says nothing of the corruption. But where a corrupted
image lies nearer to the image that it was made of than that one's radius, its answer is promised,
and another one shows that the certificate is false.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from itertools import chain, repeat
from typing import Any

import numpy as np

from lipdeploy.corruptions import UNCHANGED, Way, corrupted
from lipdeploy.datasets import LabelledSources
from lipdeploy.errors import ImageError
from lipdeploy.evaluation import Evaluation, Outcome
from lipdeploy.images import ImageSource, name_of, network_input
from lipdeploy.pairs import Pair
from lipdeploy.pipeline import Pipeline
from lipdeploy.prediction import Failure, Prediction
from lipdeploy.predictor import DECODERS, Predictor
from lipdeploy.resize import Pixels


@dataclass(frozen=True, eq=False)
class View:
    """An image in one way.

    Attributes:
        name: where the image comes from.
        way: what was done to it.
        clean: the image at the network's size, shape (n, n, 3), uint8; None if unreadable.
        pixels: what became of it, of the same shape; None if unreadable.
        error: why it is unreadable.
    """

    name: str
    way: Way
    clean: Pixels | None
    pixels: Pixels | None
    error: str = ""

    @property
    def squared_distance(self) -> int | None:
        """Sum of the squared differences of the values 0 ... 255; None if unreadable."""
        if self.clean is None or self.pixels is None:
            return None
        return int(np.sum((self.clean.astype(np.int64) - self.pixels) ** 2))


@dataclass(frozen=True, eq=False)
class Shifted:
    """What became of an image in one way.

    Attributes:
        view: the image.
        clean: the answer for the image as it is.
        outcome: the answer for the view.
    """

    view: View
    clean: Prediction | Failure
    outcome: Outcome

    @cached_property
    def pair(self) -> Pair | None:
        """Image and view with their distance; None for the image as it is, or without answers."""
        result, distance = self.outcome.result, self.view.squared_distance
        if self.view.way == UNCHANGED or distance is None:
            return None
        if isinstance(self.clean, Failure) or isinstance(result, Failure):
            return None
        return Pair(self.clean, result, Fraction(distance), None)


def shifted(
    predictor: Predictor, images: LabelledSources[Any], ways: Sequence[Way], seed: int
) -> Iterator[Shifted]:
    """Each image as it is, then in all ways; never more of them held than are read ahead.

    Images are read once. Ahead of the predictor, up to `DECODERS` images are read and as many
    views made, by as many threads each.

    Args:
        predictor: certifies, too.
        images: their labels count the predictor's classes.
        ways: without `UNCHANGED`, which is always there.
        seed: of the corruptions' random numbers.
    """
    all_ways = (UNCHANGED, *ways)
    labels = chain.from_iterable(repeat(label, len(all_ways)) for label in images.labels)
    clean: Prediction | Failure = Failure("", "")
    with Pipeline() as pipeline:
        read = partial(_read, size=predictor.network.image_size)
        asis = pipeline.map(read, enumerate(images.sources), ahead=DECODERS, threads=DECODERS)
        tasks = ((view, way) for view in asis for way in all_ways)
        views = pipeline.map(partial(_made, seed), tasks, ahead=DECODERS, threads=DECODERS)
        for label, (view, result) in zip(labels, _answered(predictor, views), strict=True):
            named = replace(result, path=view.name)
            clean = named if view.way == UNCHANGED else clean
            yield Shifted(view, clean, Outcome(images.classes[label], named))


def _read(numbered: tuple[int, ImageSource], size: int) -> View:
    """An image as it is, at the network's size, rounded to 8 bits."""
    index, source = numbered
    name = name_of(source) or f"#{index}"
    try:
        values = network_input(source, size).pixels
    except ImageError as error:
        return View(name, UNCHANGED, None, None, str(error))
    pixels = np.ascontiguousarray(np.rint(values).astype(np.uint8).transpose(1, 2, 0))
    return View(name, UNCHANGED, pixels, pixels)


def _made(seed: int, task: tuple[View, Way]) -> View:
    """The view of an image in one way."""
    asis, way = task
    pixels = None if asis.clean is None else corrupted(asis.clean, way, seed)
    return replace(asis, way=way, pixels=pixels)


def _answered(
    predictor: Predictor, views: Iterable[View]
) -> Iterator[tuple[View, Prediction | Failure]]:
    """Views with their answers, in order; the predictor gets those that could be read."""
    given = deque[View]()
    for result in predictor.attempt(_readable(views, given)):
        yield from _unreadable(given)
        yield given.popleft(), result
    yield from _unreadable(given)


def _readable(views: Iterable[View], given: deque[View]) -> Iterator[Pixels]:
    """Pixels of the views that have any; all views are put down in `given`."""
    for view in views:
        given.append(view)
        if view.pixels is not None:
            yield view.pixels


def _unreadable(given: deque[View]) -> Iterator[tuple[View, Failure]]:
    """The unreadable views at the front, taken away from there."""
    while given and given[0].pixels is None:
        view = given.popleft()
        yield view, Failure(view.name, view.error)


class Shift:
    """Counts the images of one way.

    Attributes:
        way: the corruption.
        evaluation: right and certified answers.
        inside: images nearer to the one they were made of than that one's certified radius.
        broken: those of them whose answer contradicts the guarantee.
    """

    def __init__(self, way: Way, classes: Sequence[str]) -> None:
        self.way, self.evaluation = way, Evaluation(classes=classes)
        self.inside = self.broken = 0
        self._squared = array("q")

    def add(self, item: Shifted) -> None:
        """Count one image."""
        self.evaluation.add(item.outcome)
        distance = item.view.squared_distance
        if self.way != UNCHANGED and distance is not None:
            self._squared.append(distance)
        if item.pair is not None:
            self.inside += item.pair.is_covered
            self.broken += item.pair.contradicts

    @property
    def corrupted(self) -> int:
        """Images that were corrupted: those that could be read, none of the way `UNCHANGED`."""
        return len(self._squared)

    @property
    def median_length_255(self) -> float | None:
        """Median l2 length of what the corruption changes, in 1/255; None without images."""
        lengths = np.sqrt(np.array(self._squared, dtype=np.float64))
        return float(np.median(lengths)) if lengths.size else None
