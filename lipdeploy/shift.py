"""What becomes of answers when images are corrupted, and whether certificates hold on the way.

All of it on images of 8 bits of the network's input size: an image of another size is resized and
rounded first, then corrupted. A certificate says nothing of the corruption. But where a corrupted
image lies nearer to the image that it was made of than that one's radius, its answer is promised,
and another one shows that the certificate is false.
"""

from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import chain, repeat
from typing import Any

import numpy as np

from lipdeploy.corruptions import UNCHANGED, Way, corrupted
from lipdeploy.datasets import LabelledSources
from lipdeploy.errors import ImageError
from lipdeploy.evaluation import Evaluation, Outcome
from lipdeploy.images import ImageSource, name_of, network_input
from lipdeploy.pairs import Pair
from lipdeploy.prediction import Failure, Prediction
from lipdeploy.predictor import Predictor
from lipdeploy.resize import Pixels


@dataclass(frozen=True, eq=False)
class View:
    """An image in one way.

    Attributes:
        name: where the image comes from.
        way: what was done to it.
        clean: the image at the network's size, shape (n, n, 3), uint8; None if unreadable.
        pixels: what became of it, of the same shape; None if unreadable.
    """

    name: str
    way: Way
    clean: Pixels | None
    pixels: Pixels | None

    @property
    def squared_distance(self) -> int:
        """Sum of the squared differences of the values 0 ... 255; 0 if unreadable."""
        if self.clean is None or self.pixels is None:
            return 0
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
        result, distance = self.outcome.result, Fraction(self.view.squared_distance)
        if self.view.way == UNCHANGED or isinstance(self.clean, Failure):
            return None
        return Pair(self.clean, result, distance, None) if isinstance(result, Prediction) else None


class _Views:
    """Sources of a predictor: each image in all ways, made when it is read.

    Attributes:
        given: the views whose answers are not there yet, in order.
    """

    def __init__(
        self, sources: Sequence[ImageSource], ways: Sequence[Way], size: int, seed: int
    ) -> None:
        self.given = deque[View]()
        self._sources, self._ways, self._size, self._seed = sources, ways, size, seed

    def __iter__(self) -> Iterator[ImageSource]:
        for index, source in enumerate(self._sources):
            name = name_of(source) or f"#{index}"
            clean = _input_pixels(source, self._size)
            for way in self._ways:
                pixels = None if clean is None else corrupted(clean, way, self._seed)
                self.given.append(View(name, way, clean, pixels))
                # The predictor says why it cannot be read.
                yield source if pixels is None else pixels


def _input_pixels(source: ImageSource, size: int) -> Pixels | None:
    """The image at the network's size, shape (size, size, 3), uint8; None if unreadable."""
    try:
        values = network_input(source, size).pixels
    except ImageError:
        return None
    return np.ascontiguousarray(np.rint(values).astype(np.uint8).transpose(1, 2, 0))


def shifted(
    predictor: Predictor, images: LabelledSources[Any], ways: Sequence[Way], seed: int
) -> Iterator[Shifted]:
    """Each image as it is, then in all ways; never more of them held than are read ahead.

    Args:
        predictor: certifies, too.
        images: their labels count the predictor's classes.
        ways: without `UNCHANGED`, which is always there.
        seed: of the corruptions' random numbers.
    """
    all_ways = (UNCHANGED, *ways)
    views = _Views(images.sources, all_ways, predictor.network.image_size, seed)
    labels = chain.from_iterable(repeat(label, len(all_ways)) for label in images.labels)
    clean: Prediction | Failure = Failure("", "")
    for label, result in zip(labels, predictor.attempt(views), strict=True):
        view = views.given.popleft()
        named = replace(result, path=view.name)
        clean = named if view.way == UNCHANGED else clean
        yield Shifted(view, clean, Outcome(images.classes[label], named))


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
        if item.pair is not None:
            self._squared.append(item.view.squared_distance)
            self.inside += item.pair.is_covered
            self.broken += item.pair.contradicts

    @property
    def median_length_255(self) -> float | None:
        """Median l2 length of what the corruption changes, in 1/255; None without images."""
        lengths = np.sqrt(np.array(self._squared, dtype=np.float64))
        return float(np.median(lengths)) if lengths.size else None
