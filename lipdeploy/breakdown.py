"""What an evaluation says beyond its totals: by class, by mistake, by radius, by confidence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipdeploy.evaluation import UNREADABLE, Evaluation

QUANTILES = (Fraction(5, 100), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(95, 100))
CONFIDENCE_BINS = 10


@dataclass(frozen=True)
class ClassResult:
    """One class of the test set.

    Attributes:
        name: of the class.
        images: of this class.
        correct: those with the right answer.
        certified: those certified beyond each radius that was asked for.
        average_radius: mean radius, 0 for wrong answers, l2 in [0, 1] pixels.
        mean_correct_radius: mean radius of the right answers, in the same units.
    """

    name: str
    images: int
    correct: int
    certified: tuple[int, ...]
    average_radius: float
    mean_correct_radius: float


@dataclass(frozen=True)
class Mistake:
    """Images of one class that were taken for another.

    Attributes:
        true_class: what they are.
        predicted: what was answered.
        images: how many.
        certified: those of the wrong answers whose radius is more than 0.
        largest_radius: of these answers, l2 in [0, 1] pixels.
    """

    true_class: str
    predicted: str
    images: int
    certified: int
    largest_radius: float


@dataclass(frozen=True)
class ConfidenceBin:
    """Answers whose largest softmax probability lies in (low, high].

    Attributes:
        low: of the interval.
        high: of the interval.
        images: answers in it.
        confidence: their mean probability.
        accuracy: the share of them that is right.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def by_class(evaluation: Evaluation, radii: Sequence[Fraction]) -> list[ClassResult]:
    """Each class in the order of the model."""
    true, is_right, found = evaluation.true, evaluation.is_right, evaluation.radii
    certified = [evaluation.is_certified(radius) for radius in radii]
    results = []
    for position, name in enumerate(evaluation.classes):
        members = true == position
        images, correct = int(members.sum()), int(is_right[members].sum())
        total = math.fsum(found[members])
        counts = tuple(int(which[members].sum()) for which in certified)
        averages = total / max(1, images), total / max(1, correct)
        results.append(ClassResult(name, images, correct, counts, *averages))
    return results


def mistakes(evaluation: Evaluation) -> list[Mistake]:
    """Wrong answers by true and predicted class, the most frequent first."""
    true, predicted, names = evaluation.true, evaluation.predicted, evaluation.classes
    wrong = ~evaluation.is_right & (predicted != UNREADABLE)
    pairs = np.stack([true[wrong], predicted[wrong]], axis=1)
    radii = evaluation.answer_radii[wrong]
    kinds, which, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    certified = np.bincount(which.ravel()[radii > 0], minlength=len(kinds))
    largest = np.zeros(len(kinds))
    np.maximum.at(largest, which.ravel(), radii)
    return [
        Mistake(
            names[kinds[kind, 0]],
            names[kinds[kind, 1]],
            int(counts[kind]),
            int(certified[kind]),
            float(largest[kind]),
        )
        for kind in np.argsort(-counts, kind="stable").tolist()
    ]


def wrong_and_certified(evaluation: Evaluation) -> int:
    """Wrong answers whose radius is more than 0: stable, and wrong all the same."""
    is_wrong = ~evaluation.is_right
    return int((evaluation.answer_radii[is_wrong] > 0).sum())


def radius_quantiles(evaluation: Evaluation) -> list[tuple[Fraction, float]]:
    """Quantiles of the radii of right answers, each the radius of an image, rounded down."""
    radii = evaluation.radii[evaluation.is_right]
    if not radii.size:
        return []
    levels = [float(q) for q in QUANTILES]
    values = np.quantile(radii, levels, method="lower").tolist()
    return list(zip(QUANTILES, values, strict=True))


def calibration(evaluation: Evaluation) -> list[ConfidenceBin]:
    """Reliability of the softmax of the logits (Guo et al., 2017); empty intervals are left out."""
    answered = evaluation.predicted != UNREADABLE
    confidences, is_right = evaluation.confidences[answered], evaluation.is_right[answered]
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    bins = []
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        inside = (confidences > low) & (confidences <= high)
        if count := int(inside.sum()):
            means = float(confidences[inside].mean()), float(is_right[inside].mean())
            bins.append(ConfidenceBin(low, high, count, *means))
    return bins


def calibration_error(bins: Sequence[ConfidenceBin]) -> float:
    """Expected calibration error: mean distance of confidence and accuracy, by images."""
    total = sum(part.images for part in bins)
    distances = (part.images * abs(part.confidence - part.accuracy) for part in bins)
    return math.fsum(distances) / total if total else 0.0


def equal_change_lower(radius_255: Fraction | float, numbers: int) -> float:
    """Largest equal change of every number of the input that has l2 norm `radius_255`.

    A change of c in each of d numbers has norm c sqrt(d), so c = r / sqrt(d); in units of 1/255,
    rounded down.

    Args:
        radius_255: l2, in units of 1/255, at least 0.
        numbers: of the input: 3 n n.
    """
    square = Fraction(radius_255) ** 2 / numbers
    value = math.sqrt(square)
    while Fraction(value) ** 2 > square:
        value = math.nextafter(value, 0)
    return value


@dataclass(frozen=True)
class Extremes:
    """Positions of images that are worth a look, in the order of the name.

    Attributes:
        largest: right answers with the largest radius.
        smallest: right answers with the smallest.
        wrong: wrong answers with the largest radius: the most stable mistakes.
    """

    largest: list[int]
    smallest: list[int]
    wrong: list[int]


def extremes(evaluation: Evaluation, count: int) -> Extremes:
    """At most `count` positions of each kind; equal radii in the order of the images."""
    radii = evaluation.answer_radii
    right = np.flatnonzero(evaluation.is_right)
    wrong = np.flatnonzero(~evaluation.is_right & (evaluation.predicted != UNREADABLE))
    return Extremes(
        _first(right, -radii, count), _first(right, radii, count), _first(wrong, -radii, count)
    )


def _first(indices: NDArray[np.intp], keys: NDArray[np.float64], count: int) -> list[int]:
    order = np.argsort(keys[indices], kind="stable")[:count]
    return [int(index) for index in indices[order]]
