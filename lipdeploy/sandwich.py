"""What is proven and what an attack found, beside each other.

For each radius r the share of images that keep the right class under every change of at most r lies
between two numbers: right answers *certified* beyond r, and right answers for which no attack found
another class within r. Where they meet, both are known to be exact; a certified image that an
attack breaks shows that the certificate is false.

That holds of the statement *program*. *network* and *no-certified-flip* allow the engine another
class inside of the ball, with the radius 0 (see `lipdeploy.certificate`): under them the accuracy
under attack can be below the certified one, and a ratio below 1, and nothing is wrong.
"""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lipdeploy.decimals import float_lower
from lipdeploy.prediction import Failure, Prediction

Pixels = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Adversarial:
    """An input near an image to which the engine itself gave another class.

    Attributes:
        pixels: what the engine saw, shape (3, n, n), float32, 0 ... 255.
        distance_255: upper bound of its l2 distance from the image, in units of 1/255.
        class_index: position of the class that it got.
        attack: what found it.
    """

    pixels: Pixels
    distance_255: float
    class_index: int
    attack: str


@dataclass(frozen=True, eq=False)
class Attacked:
    """What became of one image; only right answers are attacked.

    Attributes:
        true_class: name of its class.
        result: the certified prediction, or why there is none.
        pixels: the input of the network, shape (3, n, n), 0 ... 255; None without a prediction.
        nearest: the nearest input of another class that was found, or None.
        broken: an input inside of the certified ball that contradicts the guarantee, or None.
    """

    true_class: str
    result: Prediction | Failure
    pixels: Pixels | None = None
    nearest: Adversarial | None = None
    broken: Adversarial | None = None

    @property
    def is_right(self) -> bool:
        """Whether the class is the true one; false for an image that cannot be read."""
        return isinstance(self.result, Prediction) and self.result.label == self.true_class

    @property
    def radius_255(self) -> float:
        """Certified radius of a right answer in units of 1/255; else 0."""
        certificate = self.result.certificate if isinstance(self.result, Prediction) else None
        return certificate.radius_255 if certificate and self.is_right else 0.0

    @property
    def distance_255(self) -> float:
        """Distance of the nearest other class that was found, in units of 1/255.

        Infinite where none was found, 0 for a wrong answer: nothing has to change.
        """
        if not self.is_right:
            return 0.0
        return self.nearest.distance_255 if self.nearest else inf

    @property
    def ratio(self) -> float | None:
        """Distance by certified radius; None where there is no radius or nothing was found."""
        has_both = self.radius_255 > 0 and self.nearest is not None
        return self.distance_255 / self.radius_255 if has_both else None


class Sandwich:
    """Counts attacked images; keeps two numbers an image.

    Attributes:
        images: all, also those that were not attacked because the answer is wrong.
        right: right answers, all of which were attacked.
        broken: certificates that an attack contradicted.
    """

    def __init__(self) -> None:
        self.images = self.right = self.broken = 0
        self._radii = array("d")
        self._distances = array("d")
        self._ratios = array("d")

    def add(self, item: Attacked) -> None:
        """Count one image."""
        self.images += 1
        self.right += item.is_right
        self.broken += item.broken is not None
        self._radii.append(item.radius_255)
        self._distances.append(item.distance_255)
        if item.ratio is not None:
            self._ratios.append(item.ratio)

    def certified(self, radius: Fraction) -> int:
        """Right answers certified beyond `radius` (l2 in [0, 1] pixels), compared exactly."""
        largest_below = float_lower(255 * radius)
        return sum(value > largest_below for value in self._radii)

    def under_attack(self, radius: Fraction) -> int:
        """Right answers for which no other class was found within `radius`."""
        largest_below = float_lower(255 * radius)
        return sum(value > largest_below for value in self._distances)

    def undecided(self, radius: Fraction) -> int:
        """Right answers neither certified beyond `radius` nor given another class within it."""
        limit = float_lower(255 * radius)
        pairs = zip(self._radii, self._distances, strict=True)
        return sum(radius_255 <= limit < distance for radius_255, distance in pairs)

    @property
    def compared(self) -> int:
        """Right answers with a certificate and a perturbation, which have a ratio."""
        return len(self._ratios)

    @property
    def median_ratio(self) -> float | None:
        """Median of the smallest perturbation found, in certified radii; 1 would be exact."""
        return median(self._ratios) if self._ratios else None

    @property
    def smallest_ratio(self) -> float | None:
        """Of the certificate nearest to being exact; one of *program* is false below 1."""
        return min(self._ratios, default=None)

    def curves(self) -> tuple[list[float], list[float], list[float]]:
        """Radii in 1/255, shares certified beyond each, shares that no attack broke within each."""
        steps = sorted({0.0, *self._radii, *(d for d in self._distances if d < inf)})
        ordered = sorted(self._radii), sorted(self._distances)
        certified, unbroken = (
            [(len(values) - bisect_right(values, r)) / len(values) for r in steps]
            for values in ordered
        )
        return steps, certified, unbroken


Score = Callable[[Attacked], float]

CHOICES: dict[str, Score] = {
    "largest radius": lambda item: -item.radius_255,
    "smallest radius": lambda item: item.radius_255,
    "smallest ratio": lambda item: item.ratio or inf,
}
"""Why an image is worth a look; the smallest score first."""


class Gallery:
    """Keeps the few images that are worth a look, of any number that pass.

    Args:
        wanted: ends of the paths of the images to keep; where there are any, no others are kept.
        each: how many for each reason of `CHOICES`.
    """

    def __init__(self, wanted: Sequence[str] = (), each: int = 2) -> None:
        self._wanted, self._each = tuple(wanted), each
        self._kept: dict[str, list[Attacked]] = {}

    def add(self, item: Attacked) -> None:
        """Look at one image; only those with a certificate and a perturbation can be shown."""
        if item.ratio is None:
            return
        if self._wanted:
            if str(item.result.path).endswith(self._wanted):
                self._kept.setdefault("chosen", []).append(item)
            return
        for reason, score in CHOICES.items():
            best = [*self._kept.get(reason, []), item]
            self._kept[reason] = sorted(best, key=score)[: self._each]

    def chosen(self) -> list[tuple[str, Attacked]]:
        """Reasons and images, best first."""
        return [(reason, item) for reason, items in self._kept.items() for item in items]
