"""Whether the certificate of one image covers another one."""

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from lipdeploy.errors import ImageError, ModelError
from lipdeploy.images import ImageSource, decode, network_input
from lipdeploy.prediction import Certificate, Prediction
from lipdeploy.predictor import Predictor


@dataclass(frozen=True)
class Pair:
    """Two predictions and the distance of their images.

    Attributes:
        first: whose certificate is asked.
        second: the other one.
        squared_distance: of the network's inputs, exact, in units of 1/255.
        squared_file_distance: of the decoded pixels, exact, in units of 1/255; None where the
            images differ in size, or their pixels are not the file's (grey, palette, alpha, CMYK).
    """

    first: Prediction
    second: Prediction
    squared_distance: Fraction
    squared_file_distance: int | None

    @property
    def _certificate(self) -> Certificate:
        if self.first.certificate is None:
            raise ModelError("a pair needs certificates; use a Predictor with certify=True")
        return self.first.certificate

    @property
    def is_covered(self) -> bool:
        """Whether the second image lies in the ball of the first, compared exactly."""
        return self.squared_distance < Fraction(self._certificate.radius_255) ** 2

    @property
    def is_covered_in_file(self) -> bool | None:
        """The same of the decoded pixels and the integer budget; None without such a distance."""
        budget = self._certificate.integer_budget
        if self.squared_file_distance is None or budget is None:
            return None
        return self.squared_file_distance <= budget

    @property
    def contradicts(self) -> bool:
        """Whether the answers are such that the guarantee would be false.

        *program* promises the same class to every covered image, the other statements to those
        that get a positive radius, too.
        """
        covered = self.is_covered or bool(self.is_covered_in_file)
        promised = self._certificate.guarantee == "program" or self.second.radius > 0
        return covered and promised and self.first.class_index != self.second.class_index

    @property
    def distance_255(self) -> float:
        """The distance of the inputs in units of 1/255, to nearest; verdicts use the exact one."""
        return math.sqrt(self.squared_distance)


def check_pair(predictor: Predictor, first: ImageSource, second: ImageSource) -> Pair:
    """Predict two images and compare their distance with the certificate of the first.

    Raises:
        ImageError: if one cannot be read.
    """
    size = predictor.network.image_size
    inputs = []
    for source in (first, second):
        try:
            inputs.append(network_input(source, size).pixels)
        except ImageError as error:
            name = source if isinstance(source, str | Path) else "an image"
            raise ImageError(f"{name}: {error}") from error
    a, b = (pixels.ravel().tolist() for pixels in inputs)
    squared = sum(((Fraction(p) - Fraction(q)) ** 2 for p, q in zip(a, b, strict=True) if p != q))
    answers = list(predictor([first, second]))
    return Pair(answers[0], answers[1], Fraction(squared), _file_distance(first, second))


def _file_distance(first: ImageSource, second: ImageSource) -> int | None:
    a, b = decode(first), decode(second)
    if a.pixels.shape != b.pixels.shape or (a.file_norm, b.file_norm) != (1.0, 1.0):
        return None
    difference = a.pixels.astype(np.int64) - b.pixels.astype(np.int64)
    return int(np.sum(difference**2))
