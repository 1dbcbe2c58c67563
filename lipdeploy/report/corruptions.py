"""Answers under corruptions, as a table and in plain values."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from lipdeploy.decimals import float_lower, in_255ths, lower
from lipdeploy.report.broken import BrokenPair
from lipdeploy.report.console import (
    plain_table,
    print_error,
    print_line,
    print_note,
    print_table,
    progress_bars,
)
from lipdeploy.report.evaluation import share

if TYPE_CHECKING:
    from lipdeploy.predictor import Predictor
    from lipdeploy.resize import Pixels
    from lipdeploy.shift import Shift, Shifted

SOURCE = (
    "Hendrycks & Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and "
    "Perturbations, ICLR 2019; constants of CIFAR-10-C"
)
NOTHING_GUARANTEED = (
    "nothing is guaranteed about a corruption: that an answer is right and certified at r (the "
    "columns of radii) speaks of changes of the corrupted image; length is the median l2 length of "
    "what a corruption changes, inside counts the corrupted images nearer to the image that they "
    "were made of than its radius"
)
PROMISED = {
    "program": "their answers are promised to be that of the image",
    "network": "their answers are promised to be that of the image where they have a radius, too",
    "no-certified-flip": "their answers are promised to be that of the image where they have a "
    "radius, too",
}
"""What each guarantee says of the corrupted images inside of a radius."""
TOLD = 10
"""Contradictions that are told and kept; all are counted."""

Summary = dict[str, Any]


@dataclass(frozen=True)
class Course:
    """How it went.

    Attributes:
        seed: of the corruptions.
        seconds: time of corruptions and predictions.
        pairs: the records of `BrokenPairs`.
    """

    seed: int
    seconds: float
    pairs: Sequence[Summary]


def watched_corruptions(items: "Iterable[Shifted]", total: int) -> "Iterator[Shifted]":
    """The corrupted images, with a progress bar."""
    right = 0
    with progress_bars() as bars:
        task = bars.add_task("corrupting", total=total, note="")
        for done, item in enumerate(items, start=1):
            right += item.outcome.is_correct
            bars.update(task, completed=done, note=f"{right / done:.1%} right")
            yield item


def broken_pair(item: "Shifted") -> BrokenPair | None:
    """What contradicts the certificate of an image; None if its corrupted image does not."""
    view, pair = item.view, item.pair
    if pair is None or not pair.contradicts or view.clean is None or view.pixels is None:
        return None
    return BrokenPair(
        name=view.name,
        true_class=item.outcome.true_class,
        certified_class=pair.first.label,
        radius_255=pair.radius_255,
        original=_as_input(view.clean),
        other=_as_input(view.pixels),
        other_class=pair.second.label,
        distance_255=math.nextafter(pair.distance_255, math.inf),
        how=f"{view.way.name} of severity {view.way.severity}",
        made_by={"corruption": view.way.name, "severity": view.way.severity},
    )


def _as_input(pixels: "Pixels") -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the network gets of an image of its size, shape (3, n, n)."""
    return pixels.transpose(2, 0, 1).astype(np.float32)


def corruptions_summary(
    shifts: "Sequence[Shift]", predictor: "Predictor", radii: Sequence[Fraction], course: Course
) -> Summary:
    """The whole result in plain values, the field `corruptions` of `evaluate --json`.

    Args:
        shifts: the images as they are, then each way.
        predictor: that answered.
        radii: to count at, l2 in [0, 1] pixels.
        course: how it went.
    """
    rows = [_row(shift, radii) for shift in shifts]
    severities = sorted({shift.way.severity for shift in shifts[1:]})
    return {
        "source": SOURCE,
        "seed": course.seed,
        "image_size": predictor.network.image_size,
        "guarantee": predictor.guarantee,
        "images": rows[0]["images"],
        "rows": rows,
        "all_by_severity": [
            _sum([row for row in rows if row["severity"] == severity]) for severity in severities
        ],
        "all": _sum(rows[1:]),
        "corrupted": sum(shift.corrupted for shift in shifts),
        "inside_radius": sum(shift.inside for shift in shifts),
        "broken_certificates": sum(shift.broken for shift in shifts),
        "pairs": list(course.pairs),
        "seconds": course.seconds,
    }


def _row(shift: "Shift", radii: Sequence[Fraction]) -> Summary:
    evaluation = shift.evaluation
    return {
        "corruption": shift.way.name,
        "severity": shift.way.severity,
        "images": evaluation.images,
        "unreadable": evaluation.unreadable,
        "correct": evaluation.correct,
        "accuracy": evaluation.clean_accuracy,
        "certified": [
            {
                "radius": float_lower(radius),
                "radius_255": float_lower(255 * radius),
                "exactly": in_255ths(radius),
                "images": evaluation.certified(radius),
                "accuracy": evaluation.certified_accuracy(radius),
            }
            for radius in radii
        ],
        "average_certified_radius": evaluation.average_certified_radius,
        "median_length_255": shift.median_length_255,
        "inside_radius": shift.inside,
        "broken_certificates": shift.broken,
    }


def _sum(rows: Sequence[Summary]) -> Summary:
    """Rows taken together; all have the same images, so its shares are the means of theirs."""
    total = sum(row["images"] for row in rows)
    certified = []
    for same in zip(*(row["certified"] for row in rows), strict=True):
        count = sum(entry["images"] for entry in same)
        certified.append({**same[0], "images": count, "accuracy": count / total})
    correct = sum(row["correct"] for row in rows)
    severities = {row["severity"] for row in rows}
    return {
        "corruption": "all",
        "severity": severities.pop() if len(severities) == 1 else None,
        "images": total,
        "correct": correct,
        "accuracy": correct / total,
        "certified": certified,
        "median_length_255": None,
        "inside_radius": sum(row["inside_radius"] for row in rows),
    }


def write_corruptions(summary: Summary, model: str) -> None:
    """The summary for people, under the name of the model where there are several."""
    radii = [f">{entry['exactly']}" for entry in summary["all"]["certified"]]
    table = plain_table("corruption", ">severity", ">right", *radii, ">length", ">inside")
    clean, *rows = summary["rows"]
    table.add_row("none", "", *_shares(clean))
    for row in (*rows, *summary["all_by_severity"], summary["all"]):
        severity = "all" if row["severity"] is None else str(row["severity"])
        length = row["median_length_255"]
        shown = "" if length is None else f"{lower(length, 1)}/255"
        inside = str(row["inside_radius"])
        table.add_row(row["corruption"], severity, *_shares(row), shown, inside)
    print_line("", *([model] if model else []))
    print_table(table)
    print_line(inside_line(summary))
    if broken := summary["broken_certificates"]:
        print_error(
            f"{broken} of them contradict the guarantee {summary['guarantee']}, expected 0: the "
            f"certificates are false; the first {len(summary['pairs'])} are told above and kept; "
            "use this model no more"
        )
    print_note(*corruption_notes(summary))


def _shares(row: Summary) -> list[str]:
    counts = [row["correct"], *(entry["images"] for entry in row["certified"])]
    return [share(count, row["images"]) for count in counts]


def inside_line(summary: Summary) -> str:
    """How many corrupted images the certificates speak of, and whether they keep their word."""
    return (
        f"{summary['inside_radius']} of {summary['corrupted']} corrupted images lie inside of the "
        f"radius of the image that they were made of; {PROMISED[summary['guarantee']]}; "
        f"{summary['broken_certificates']} break that promise"
    )


def corruption_notes(summary: Summary) -> tuple[str, ...]:
    """What was corrupted and what the numbers mean."""
    size = summary["image_size"]
    return (
        f"corruptions of {SOURCE}, seed {summary['seed']}; of images of 8 bits and the network's "
        f"size, {size} x {size} pixels, into such images; {math.ceil(summary['seconds'])} s",
        NOTHING_GUARANTEED,
    )
