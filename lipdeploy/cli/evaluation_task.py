"""What `lipdeploy evaluate` does for each of its models."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipdeploy.cli.attack import AttackRequest, run_attack
from lipdeploy.cli.corruption import CorruptionRequest, run_corruptions
from lipdeploy.cli.values import engine_of
from lipdeploy.evaluation import Evaluation, outcomes
from lipdeploy.files import make_writable_folder, only_writer
from lipdeploy.journal import identity_of, open_journal
from lipdeploy.predictor import Predictor
from lipdeploy.report.console import print_detail
from lipdeploy.report.evaluation import tell_unreadable, watched
from lipdeploy.report.images import ImageWriter
from lipdeploy.report.summary import Course, Evaluated, evaluation_summary

if TYPE_CHECKING:
    from lipdeploy.artifact import Engine
    from lipdeploy.datasets import LabelledSources
    from lipdeploy.evaluation import Outcome


@dataclass(frozen=True)
class Task:
    """What is evaluated, whatever the model.

    Attributes:
        images: of the dataset.
        radii: to count at.
        settings: arguments of the predictor.
        journals: folder of the results of each image; None to keep none.
        data_sha256: hash of the images; None where nobody needs it.
        attack: what to attack; None for nothing.
        corruptions: what to corrupt the images with; None for nothing.
    """

    images: "LabelledSources[Any]"
    radii: Sequence[Fraction]
    settings: dict[str, Any]
    journals: Path | None = None
    data_sha256: str | None = None
    attack: AttackRequest | None = None
    corruptions: CorruptionRequest | None = None

    @contextmanager
    def only_writer(self) -> Iterator[None]:
        """Keep other processes out of the folder of results."""
        if self.journals is None:
            yield
            return
        make_writable_folder(self.journals)
        with only_writer(self.journals, "evaluating into", "--resume"):
            yield

    def run(self, model: Path, number: int, write_image: ImageWriter) -> Evaluated:
        """Evaluate one model.

        Args:
            model: its file.
            number: which of the models, from 1 on.
            write_image: takes each image.
        """
        with ExitStack() as stack:
            engine = engine_of(model)
            predictor = stack.enter_context(Predictor(engine, compare=True, **self.settings))
            print_detail(predictor.description)
            images = self.images.in_order_of(predictor.manifest.classes)
            result = Evaluation(predictor.statements, images.classes)
            numbers, start = 3 * predictor.network.image_size**2, time.perf_counter()
            known, found = self._outcomes(stack, predictor, images, number)
            for outcome in watched(found, len(images)):
                result.add(outcome)
                write_image(outcome, predictor.model, numbers)
                tell_unreadable(outcome, result.unreadable)
            course = Course(time.perf_counter() - start, known, self.data_sha256)
            summary = evaluation_summary(result, predictor, images.name, self.radii, course)
            if self.attack is not None:
                settings, request = self.settings, self.attack
                attacked = run_attack(model, predictor, images, self.radii, settings, request)
                summary |= {"attack": attacked}
            if self.corruptions is not None:
                shift = self._corrupted(model, engine, images, self.corruptions)
                summary |= {"corruptions": shift}
            return Evaluated(result, images, summary)

    def _corrupted(
        self,
        model: Path,
        engine: "Path | Engine",
        images: "LabelledSources[Any]",
        request: CorruptionRequest,
    ) -> dict[str, Any]:
        """What corruptions do, by the statement that was asked for alone: others take time."""
        settings = self.settings
        with Predictor(engine, **settings) as predictor:
            return run_corruptions(model, predictor, images, self.radii, settings, request)

    def _outcomes(
        self,
        stack: ExitStack,
        predictor: Predictor,
        images: "LabelledSources[Any]",
        number: int,
    ) -> "tuple[int, Iterator[Outcome]]":
        """How many outcomes are known, and all of them: the known ones first."""
        if self.journals is None or self.data_sha256 is None:
            return 0, outcomes(predictor, images)
        tight = bool(self.settings["tight"])
        identity = identity_of(predictor, self.data_sha256, len(images), tight=tight)
        journal = stack.enter_context(open_journal(self.journals / f"{number}.jsonl", identity))
        fresh = map(journal.keep, outcomes(predictor, images, journal.kept))
        return journal.kept, chain(journal.outcomes(), fresh)
