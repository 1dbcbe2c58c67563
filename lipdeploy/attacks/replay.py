"""The engine's own word on what an attack found."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipdeploy.bounds import UNIT_ROUNDOFF, row_norms_upper
from lipdeploy.images import NetworkInput
from lipdeploy.prediction import Prediction
from lipdeploy.predictor import Predictor
from lipdeploy.sandwich import Adversarial, Attacked, Pixels

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

HALVINGS = 10
"""Of the way back to the image: what remains is at most a thousandth too long."""


class Replay:
    """A batch of right answers, and what the engine confirmed of the attacks on them.

    Args:
        predictor: has answered them; its engine decides.
        items: the answers, with pixels; at least one.

    Attributes:
        pixels: shape (batch, 3, n, n), float32, 0 ... 255.
        labels: classes that the engine gave, shape (batch,).
        radii_255: certified, in units of 1/255, shape (batch,).
    """

    def __init__(self, predictor: Predictor, items: Sequence[Attacked]) -> None:
        self._predictor, self._items = predictor, list(items)
        answers = [item.result for item in items if isinstance(item.result, Prediction)]
        self.pixels: Pixels = np.stack([item.pixels for item in items if item.pixels is not None])
        self.labels: Rows = np.array([answer.class_index for answer in answers])
        self.radii_255: Array = np.array([item.radius_255 for item in items])

    @property
    def distances_255(self) -> Array:
        """Distance of the nearest other class so far, in units of 1/255; infinite for none."""
        return np.array([item.distance_255 for item in self._items])

    def results(self) -> list[Attacked]:
        """The answers with what was found."""
        return self._items

    def offer(self, rows: Rows, candidates: Pixels, attack: str) -> None:
        """Ask the engine about a candidate for each of some images, and go back towards the image.

        The nearest points of another class on the way are found by halving, each asked of the
        engine as well.

        Args:
            rows: positions of the images.
            candidates: shape (len(rows), 3, n, n), float32, 0 ... 255.
            attack: what found them.
        """
        flipped = self._confirm(rows, candidates, attack)
        rows, candidates = rows[flipped], candidates[flipped]
        low, high = np.zeros(len(rows)), np.ones(len(rows))
        for _ in range(HALVINGS if len(rows) else 0):
            middle = (low + high) / 2
            flipped = self._confirm(rows, self._between(rows, candidates, middle), attack)
            low, high = np.where(flipped, low, middle), np.where(flipped, middle, high)

    def _between(self, rows: Rows, candidates: Pixels, shares: Array) -> Pixels:
        """Points on the way from the images to the candidates."""
        start = self.pixels[rows].astype(np.float64)
        points: Pixels = (start + shares[:, None, None, None] * (candidates - start)).astype(
            np.float32
        )
        return points

    def _confirm(self, rows: Rows, candidates: Pixels, attack: str) -> NDArray[np.bool_]:
        """Which candidates the engine gives another class; the best of them are kept."""
        _, logits = self._predictor.runtime.run(candidates)
        classes = logits.argmax(axis=1)
        flipped: NDArray[np.bool_] = classes != self.labels[rows]
        moved = candidates.astype(np.float64) - self.pixels[rows]
        # The differences are rounded once each.
        distances = row_norms_upper(moved.reshape(len(rows), -1)) * (1 + 4 * UNIT_ROUNDOFF)
        for index in np.nonzero(flipped)[0]:
            distance, label = float(distances[index]), int(classes[index])
            self._keep(int(rows[index]), Adversarial(candidates[index], distance, label, attack))
        return flipped

    def _keep(self, row: int, found: Adversarial) -> None:
        item = self._items[row]
        is_nearer = found.distance_255 < item.distance_255
        is_inside = found.distance_255 < item.radius_255 and item.broken is None
        if not is_nearer and not is_inside:
            return
        # A copy, or the whole batch would stay in memory with it.
        found = replace(found, pixels=found.pixels.copy())
        self._items[row] = replace(
            item,
            nearest=found if is_nearer else item.nearest,
            broken=found if is_inside and self._contradicts(row, found) else item.broken,
        )

    def _contradicts(self, row: int, found: Adversarial) -> bool:
        """Whether an input inside of the certified ball makes the guarantee false.

        *program* promises the class to all of them, the other statements to those that get a
        positive radius, too (see `lipdeploy.certificate`).
        """
        if self._predictor.guarantee == "program":
            return True
        (answer,) = self._predictor.answer_batch([NetworkInput(found.pixels, 0.0, None)])
        differs = isinstance(answer, Prediction) and answer.class_index != self.labels[row]
        return differs and isinstance(answer, Prediction) and answer.radius > 0
