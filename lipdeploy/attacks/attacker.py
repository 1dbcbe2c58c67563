"""Attacks on the answers of an engine, each confirmed by the engine itself.

Gradients are those of the frozen network in torch; an input counts only where the engine, given
exactly these float32 pixels, prints another class. Its distance is computed in float64 and rounded
up, in the space of the certificate.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from lipdeploy.attacks.auto_attack import NAME, auto_attack, check_auto_attack
from lipdeploy.attacks.gradients import differentiable
from lipdeploy.attacks.replay import Replay, Rows
from lipdeploy.attacks.searches import minimal_norm, within_ball
from lipdeploy.choices import Device
from lipdeploy.datasets import LabelledSources
from lipdeploy.decimals import float_lower
from lipdeploy.errors import ImageError
from lipdeploy.images import ImageSource, NetworkInput, name_of, network_input
from lipdeploy.prediction import Failure
from lipdeploy.predictor import Predictor
from lipdeploy.sandwich import Attacked

JUST_INSIDE = 1 - 1e-4
"""How far out in a ball is attacked: torch projects in float32, which may end a little outside."""

MINIMAL, BALL = "Fast Minimum-Norm", "PGD"


@dataclass(frozen=True)
class AttackOptions:
    """How much is tried.

    Attributes:
        radii: those at which no image may stay undecided without a try, l2 in [0, 1] pixels.
        minimal_steps: gradients for each image in the search for the smallest perturbation.
        ball_steps: gradients for each random start in a ball.
        restarts: random starts at each of `radii`; there is one at the certified radius.
        seed: of the random starts.
        auto_attack: whether AutoAttack, which takes long, attacks all images at each of `radii`.
    """

    radii: tuple[Fraction, ...] = ()
    minimal_steps: int = 30
    ball_steps: int = 20
    restarts: int = 2
    seed: int = 0
    auto_attack: bool = False

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks."""
        return (MINIMAL, BALL, NAME) if self.auto_attack else (MINIMAL, BALL)


class Attacker:
    """Attacks batches of right answers.

    Args:
        predictor: certifies, too; what is attacked.
        options: how much is tried.
        device: of the gradients.

    Raises:
        EngineError: if the device cannot be used, or a package is missing.
    """

    def __init__(
        self, predictor: Predictor, options: AttackOptions, device: Device = "auto"
    ) -> None:
        if options.auto_attack:
            check_auto_attack()
        self._predictor, self.options = predictor, options
        self._model, self._device = differentiable(predictor.network, predictor.manifest, device)
        self._batches = 0

    def attack(self, items: Sequence[Attacked]) -> list[Attacked]:
        """Attack one batch of right answers.

        First the smallest perturbation is looked for, then each certified ball is attacked from a
        random start, then each asked radius where the image is neither certified nor broken. With
        AutoAttack each asked radius of all images that are not broken there follows.
        """
        if not items:
            return []
        replay = Replay(self._predictor, items)
        self._nearest(replay)
        self._in_balls(replay, replay.radii_255, replay.radii_255 > 0, restarts=1)
        for radius in self.options.radii:
            limit = np.full(len(items), float_lower(255 * radius))
            undecided = (replay.radii_255 <= limit) & (replay.distances_255 > limit) & (limit > 0)
            self._in_balls(replay, limit, undecided, self.options.restarts)
            if self.options.auto_attack:
                self._everything(replay, limit)
        self._batches += 1
        return replay.results()

    def _nearest(self, replay: Replay) -> None:
        """Look for the smallest perturbation of every image."""
        rows: Rows = np.arange(len(replay.labels))
        before, labels = self._tensors(replay, rows)
        after = minimal_norm(self._model, before, labels, self.options.minimal_steps)
        self._offer(replay, rows, after - before, MINIMAL)

    def _in_balls(
        self,
        replay: Replay,
        radii_255: NDArray[np.float64],
        chosen: NDArray[np.bool_],
        restarts: int,
    ) -> None:
        """Look for other classes in the balls of some images."""
        rows = np.nonzero(chosen)[0]
        if not len(rows):
            return
        before, labels = self._tensors(replay, rows)
        after = within_ball(
            self._model,
            before,
            labels,
            torch.tensor(JUST_INSIDE / 255 * radii_255[rows]).float().to(self._device),
            steps=self.options.ball_steps,
            restarts=restarts,
            # Other starts for other batches, the same for the same.
            seed=self.options.seed + self._batches,
        )
        self._offer(replay, rows, after - before, BALL)

    def _everything(self, replay: Replay, limit: NDArray[np.float64]) -> None:
        """Let AutoAttack look for other classes in balls of one size, certified or not."""
        rows = np.nonzero((replay.distances_255 > limit) & (limit > 0))[0]
        if not len(rows):
            return
        before, labels = self._tensors(replay, rows)
        after = auto_attack(
            self._model,
            before,
            labels,
            float(JUST_INSIDE / 255 * limit[0]),
            classes=self._predictor.network.head.classes,
            seed=self.options.seed + self._batches,
        )
        self._offer(replay, rows, after - before, NAME)

    def _tensors(self, replay: Replay, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Images in [0, 1] and labels."""
        # Contiguous, since attacks take views of them.
        pixels = np.ascontiguousarray(replay.pixels[rows])
        images = torch.tensor(pixels, device=self._device) / 255
        return images, torch.tensor(replay.labels[rows], device=self._device)

    def _offer(self, replay: Replay, rows: Rows, moved: torch.Tensor, attack: str) -> None:
        """Let the engine decide on the images moved so."""
        moved_255 = (255 * moved.double()).cpu().numpy()
        candidates = np.clip(replay.pixels[rows] + moved_255, 0, 255).astype(np.float32)
        replay.offer(rows, candidates, attack)


def attacked(
    attacker: Attacker, predictor: Predictor, images: LabelledSources[ImageSource]
) -> Iterator[Attacked]:
    """Predict and attack, in order, one batch in memory at a time.

    Args:
        attacker: of this predictor.
        predictor: certifies, too.
        images: their labels count the predictor's classes.
    """
    for start in range(0, len(images), predictor.batch_size):
        part = slice(start, start + predictor.batch_size)
        names = [images.classes[label] for label in images.labels[part]]
        items = _answered(predictor, images.sources[part], names, start)
        found = iter(attacker.attack([item for item in items if item.is_right]))
        yield from (next(found) if item.is_right else item for item in items)


def _answered(
    predictor: Predictor, sources: Sequence[ImageSource], names: Sequence[str], start: int
) -> list[Attacked]:
    """Images with their answers, nothing attacked yet; the first is number `start`."""
    size = predictor.network.image_size
    paths = [name_of(source) or f"#{index}" for index, source in enumerate(sources, start)]
    read = [_read(source, path, size) for source, path in zip(sources, paths, strict=True)]
    answers = iter(predictor.answer_batch([i for i in read if isinstance(i, NetworkInput)]))
    items = []
    for path, content, name in zip(paths, read, names, strict=True):
        if isinstance(content, Failure):
            items.append(Attacked(name, content))
        else:
            answer = replace(next(answers), path=path)
            items.append(Attacked(name, answer, content.pixels))
    return items


def _read(source: ImageSource, path: str, size: int) -> NetworkInput | Failure:
    try:
        return network_input(source, size)
    except ImageError as error:
        return Failure(path, str(error))
