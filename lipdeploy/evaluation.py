"""Clean and certified accuracy of a predictor on labelled images, one image at a time."""

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipdeploy.datasets import LabelledSources
from lipdeploy.decimals import float_lower
from lipdeploy.images import ImageSource
from lipdeploy.prediction import Failure, Prediction
from lipdeploy.predictor import Predictor

STANDARD_RADII = (Fraction(36, 255), Fraction(72, 255), Fraction(108, 255), Fraction(1))
"""Those that the field reports, l2 in pixels of [0, 1]."""

UNREADABLE = -1
"""In place of the class that was predicted."""


@dataclass(frozen=True)
class Outcome:
    """What became of one labelled image.

    Attributes:
        true_class: name of its class.
        result: the prediction, or why there is none.
    """

    true_class: str
    result: Prediction | Failure

    @property
    def is_correct(self) -> bool:
        """Whether the predicted class is the true one; false for an image that cannot be read."""
        return isinstance(self.result, Prediction) and self.result.label == self.true_class

    @property
    def radius(self) -> float:
        """Certified radius of a correct answer, l2 in [0, 1] pixels of the input; else 0."""
        return self.result.radius if self.is_correct and isinstance(self.result, Prediction) else 0

    def radius_255(self, statement: str) -> float:
        """Radius of a correct answer under another statement, in units of 1/255; else 0."""
        certificate = self.result.certificate if isinstance(self.result, Prediction) else None
        return certificate.radii_255[statement] if certificate and self.is_correct else 0.0

    @property
    def confidence(self) -> float:
        """Largest softmax probability of the logits as the engine returned them; 0 for none."""
        logits = self.result.logits if isinstance(self.result, Prediction) else ()
        top = max(logits, default=0.0)
        return 1 / sum(math.exp(z - top) for z in logits) if logits else 0.0


def outcomes(
    predictor: Predictor, images: LabelledSources[ImageSource], start: int = 0
) -> Iterator[Outcome]:
    """Predict and compare, in order, never holding more images than the predictor reads ahead.

    Args:
        predictor: certifies, too.
        images: their labels count the predictor's classes (see `LabelledSources.in_order_of`).
        start: position of the first image that is predicted.
    """
    rest = images.since(start)
    results = predictor.attempt(rest.sources)
    for index, (label, result) in enumerate(zip(rest.labels, results, strict=True), start):
        # The predictor numbers images without a name from 0 on.
        is_number = start and result.path == f"#{index - start}"
        named = replace(result, path=f"#{index}") if is_number else result
        yield Outcome(images.classes[label], named)


class Evaluation:
    """Counts outcomes; keeps a few numbers an image.

    An image counts as certified at r where its answer is right and its radius is *larger* than r,
    so that a change of exactly r is covered. Images that cannot be read count as wrong.

    Attributes:
        images: outcomes so far.
        unreadable: those without a prediction.
        correct: those with the right class.

    Args:
        statements: names of the statements that are compared; see `Predictor.statements`.
        classes: names in the order in which they are counted; others follow as they come.
    """

    def __init__(self, statements: Sequence[str] = (), classes: Sequence[str] = ()) -> None:
        self.images = self.unreadable = self.correct = 0
        self._positions = {name: position for position, name in enumerate(classes)}
        self._true, self._predicted = array("i"), array("i")
        self._radii, self._confidences = array("d"), array("d")
        self._compared = {name: array("d") for name in statements}

    def add(self, outcome: Outcome) -> None:
        """Count one image."""
        result = outcome.result
        self.images += 1
        self.unreadable += isinstance(result, Failure)
        self.correct += outcome.is_correct
        self._true.append(self._position(outcome.true_class))
        answer = result if isinstance(result, Prediction) else None
        self._predicted.append(self._position(answer.label) if answer else UNREADABLE)
        self._radii.append(answer.radius if answer else 0.0)
        self._confidences.append(outcome.confidence)
        for name, radii in self._compared.items():
            radii.append(outcome.radius_255(name))

    def _position(self, name: str) -> int:
        return self._positions.setdefault(name, len(self._positions))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, at the positions that `true` and `predicted` hold."""
        return tuple(self._positions)

    @property
    def true(self) -> NDArray[np.int32]:
        """The class of each image, shape (images,)."""
        return np.array(self._true, dtype=np.int32)

    @property
    def predicted(self) -> NDArray[np.int32]:
        """The class that was answered, or `UNREADABLE`, shape (images,)."""
        return np.array(self._predicted, dtype=np.int32)

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """Whether the answer is right, shape (images,)."""
        return np.equal(self.true, self.predicted)

    @property
    def answer_radii(self) -> NDArray[np.float64]:
        """Radius of each answer, right or wrong, l2 in [0, 1] pixels, shape (images,)."""
        return np.array(self._radii, dtype=np.float64)

    @property
    def radii(self) -> NDArray[np.float64]:
        """The same, 0 where the answer is wrong."""
        return np.where(self.is_right, self.answer_radii, 0.0)

    @property
    def confidences(self) -> NDArray[np.float64]:
        """Largest softmax probability of each answer; 0 for no answer; shape (images,)."""
        return np.array(self._confidences, dtype=np.float64)

    @property
    def clean_accuracy(self) -> float:
        """Share of right answers."""
        return self.correct / self.images if self.images else 0.0

    def is_certified(self, radius: Fraction) -> NDArray[np.bool_]:
        """Whether each answer is right and certified beyond `radius`, compared exactly."""
        return np.greater(self.radii, float_lower(radius))

    def certified(self, radius: Fraction) -> int:
        """Right answers certified beyond `radius`."""
        return int(self.is_certified(radius).sum())

    def compared(self, radius: Fraction) -> dict[str, int]:
        """Right answers certified beyond `radius` under each statement."""
        largest_below = float_lower(255 * radius)
        return {
            name: sum(value > largest_below for value in radii)
            for name, radii in self._compared.items()
        }

    def costs(self) -> dict[str, tuple[float, float]]:
        """What each statement costs in radius against *network*: mean and largest, in 1/255.

        Over the right answers that *network* certifies.
        """
        reference = self._compared.get("network", array("d"))
        kept = [index for index, radius in enumerate(reference) if radius > 0]
        result = {}
        for name, radii in self._compared.items():
            lost = [reference[index] - radii[index] for index in kept]
            if name.startswith("program") and lost:
                result[name] = max(0.0, sum(lost) / len(lost)), max(0.0, *lost)
        return result

    def certified_accuracy(self, radius: Fraction) -> float:
        """Share of right answers certified beyond `radius`."""
        return self.certified(radius) / self.images if self.images else 0.0

    @property
    def average_certified_radius(self) -> float:
        """Mean radius, 0 for wrong answers (Zhai et al., 2020); l2 in [0, 1] pixels."""
        return sum(self.radii.tolist()) / self.images if self.images else 0.0

    @property
    def mean_correct_radius(self) -> float:
        """Mean radius of the right answers; l2 in [0, 1] pixels."""
        return sum(self.radii.tolist()) / self.correct if self.correct else 0.0

    def curve(self) -> tuple[list[float], list[float]]:
        """Certified accuracy as a step function: radii, and the share certified beyond each.

        From radius 0 to the largest; in between it changes at the radii only.
        """
        ordered = sorted(self.radii.tolist())
        radii = sorted({0.0, *ordered})
        return radii, [(len(ordered) - bisect_right(ordered, r)) / len(ordered) for r in radii]
