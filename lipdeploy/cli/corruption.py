"""The corruptions of `lipdeploy evaluate --corruptions`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipdeploy.choices import check_choice
from lipdeploy.cli.attack import BROKEN_PAIRS, check_pair_command
from lipdeploy.errors import UsageError

if TYPE_CHECKING:
    from lipdeploy.corruptions import Way
    from lipdeploy.datasets import LabelledSources
    from lipdeploy.predictor import Predictor


@dataclass(frozen=True)
class CorruptionRequest:
    """What was asked for.

    Attributes:
        ways: corruptions, each in all its severities.
        seed: of their random numbers.
    """

    ways: "tuple[Way, ...]"
    seed: int


def corruption_request(
    everything: bool, names: Sequence[str] | None, severities: Sequence[str] | None, seed: int
) -> CorruptionRequest | None:
    """The request of these options, checked before any work; None if nothing is asked for.

    Args:
        everything: whether corruptions are asked for, all where `names` is empty.
        names: of corruptions.
        severities: whole numbers as text; all where empty.
        seed: of their random numbers.

    Raises:
        UsageError: if an option does not fit.
    """
    from lipdeploy.corruptions import CORRUPTIONS, SEVERITIES, Way

    if not everything and not names:
        if severities or seed:
            option = "--severity" if severities else "--corruption-seed"
            raise UsageError(f"{option} needs --corruptions, or --corruption NAME")
        return None
    chosen = _parts(names)
    for name in chosen:
        check_choice("--corruption", name, tuple(CORRUPTIONS))
    known = tuple(map(str, SEVERITIES))
    for text in _parts(severities):
        check_choice("--severity", text, known)
    counted = sorted(map(int, _parts(severities) or known))
    kept = [name for name in CORRUPTIONS if name in chosen or not chosen]
    return CorruptionRequest(tuple(Way(name, s) for name in kept for s in counted), seed)


def _parts(texts: Sequence[str] | None) -> list[str]:
    """Values from options that may hold several between commas, each once."""
    parts = (part.strip() for text in texts or () for part in text.split(","))
    return list(dict.fromkeys(parts))


def run_corruptions(
    model: Path,
    predictor: "Predictor",
    images: "LabelledSources[Any]",
    radii: Sequence[Fraction],
    settings: dict[str, Any],
    request: CorruptionRequest,
) -> dict[str, Any]:
    """Corrupt, predict, count, say where a certificate is false; gives the summary.

    Args:
        model: the file that was given: an engine, or a trained model.
        predictor: whose answers are counted.
        images: labels in the order of its classes.
        radii: to count at, l2 in [0, 1] pixels.
        settings: arguments of the predictor.
        request: what was asked for.
    """
    from lipdeploy.corruptions import UNCHANGED
    from lipdeploy.report import corruptions as report
    from lipdeploy.report.broken import BrokenPairs
    from lipdeploy.shift import Shift, shifted

    ways = (UNCHANGED, *request.ways)
    shifts = {way: Shift(way, images.classes) for way in ways}
    again = partial(check_pair_command, model, predictor.guarantee, settings)
    evidence = BrokenPairs(BROKEN_PAIRS, predictor, again)
    start = time.perf_counter()
    items = shifted(predictor, images, request.ways, request.seed)
    for item in report.watched_corruptions(items, len(ways) * len(images)):
        shifts[item.view.way].add(item)
        pair = report.broken_pair(item)
        if pair is not None and len(evidence.records) < report.TOLD:
            evidence.tell(pair)
    seconds = time.perf_counter() - start
    course = report.Course(request.seed, seconds, evidence.records)
    return report.corruptions_summary(list(shifts.values()), predictor, radii, course)
