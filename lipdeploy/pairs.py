"""Whether the certificate of one image covers another one.

Besides images it takes inputs of the network that were saved as they are (.npy): what an attack
finds need not be an image of 8 bits.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from lipdeploy.errors import ImageError, ModelError
from lipdeploy.images import ImageSource, NetworkInput, decode, name_of, network_input
from lipdeploy.prediction import Certificate, Failure, Prediction
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
    def radius_255(self) -> float:
        """Certified radius of the first image, l2 in units of 1/255."""
        return self._certificate.radius_255

    @property
    def is_covered(self) -> bool:
        """Whether the second image lies in the ball of the first, compared exactly."""
        return self.squared_distance < Fraction(self.radius_255) ** 2

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

    Args:
        predictor: certifies, too.
        first: an image, or the path of a .npy file: float32, shape (3, n, n), 0 ... 255.
        second: the same.

    Raises:
        ImageError: if one cannot be read.
    """
    size = predictor.network.image_size
    names = [name_of(source) or "an image" for source in (first, second)]
    inputs = []
    for source, name in zip((first, second), names, strict=True):
        try:
            inputs.append(_input(source, size))
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error
    a, b = (item.pixels.ravel().tolist() for item in inputs)
    squared = sum(((Fraction(p) - Fraction(q)) ** 2 for p, q in zip(a, b, strict=True) if p != q))
    answers = [
        _answer(result, name)
        for result, name in zip(predictor.answer_batch(inputs), names, strict=True)
    ]
    return Pair(answers[0], answers[1], Fraction(squared), _file_distance(first, second))


def _answer(result: Prediction | Failure, name: str) -> Prediction:
    if isinstance(result, Failure):
        raise ImageError(f"{name}: {result.error}")
    return replace(result, path=name)


def _is_saved_input(source: ImageSource) -> bool:
    return isinstance(source, str | Path) and Path(source).suffix == ".npy"


def _input(source: ImageSource, size: int) -> NetworkInput:
    if not _is_saved_input(source):
        return network_input(source, size)
    try:
        # Mapped, so that a header that asks for more than the file holds is an error.
        found = np.array(np.load(str(source), mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ImageError("not a readable array; expected one written by --attack") from error
    is_input = found.dtype == np.float32 and found.shape == (3, size, size)
    if not is_input or not np.all((found >= 0) & (found <= 255)):
        raise ImageError(
            f"array of {found.dtype} with shape {found.shape}; expected float32 of shape "
            f"(3, {size}, {size}) from 0 to 255"
        )
    return NetworkInput(found, 0.0, None)


def _file_distance(first: ImageSource, second: ImageSource) -> int | None:
    if _is_saved_input(first) or _is_saved_input(second):
        return None
    a, b = decode(first), decode(second)
    if a.pixels.shape != b.pixels.shape or (a.file_norm, b.file_norm) != (1.0, 1.0):
        return None
    difference = a.pixels.astype(np.int64) - b.pixels.astype(np.int64)
    return int(np.sum(difference**2))
