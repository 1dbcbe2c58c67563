"""An evaluation as a table, one JSON object, and a CSV file with a line an image."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipdeploy.decimals import float_lower, in_255ths, lower, upper
from lipdeploy.files import not_writable
from lipdeploy.report.console import (
    plain_table,
    print_error,
    print_line,
    print_note,
    print_table,
    progress_bars,
)
from lipdeploy.report.prediction import guarantee_lines

if TYPE_CHECKING:
    from lipdeploy.evaluation import Evaluation, Outcome
    from lipdeploy.predictor import Predictor

NAMED = 10
"""Unreadable images that are named."""

IMAGE_COLUMNS = (
    "path",
    "class",
    "predicted",
    "correct",
    "radius",
    "radius_255",
    "radius_file",
    "integer_budget",
    "guarantee",
    "radius_255_network",
    "radius_255_program",
    "assumptions",
    "error",
)


def image_row(outcome: "Outcome") -> dict[str, Any]:
    """One line of the CSV file; radii as in `predict`, also where the answer is wrong."""
    result = outcome.result
    row = {"path": result.path, "class": outcome.true_class, "correct": int(outcome.is_correct)}
    certificate = getattr(result, "certificate", None)
    row |= {name: getattr(certificate, name, None) for name in IMAGE_COLUMNS[4:9]}
    compared = getattr(certificate, "radii_255", {})
    row["assumptions"] = "; ".join(getattr(certificate, "assumptions", ())) or None
    row |= {f"radius_255_{name}": compared.get(name) for name in ("network", "program")}
    return row | {
        "predicted": getattr(result, "label", None),
        "error": getattr(result, "error", None),
    }


@contextmanager
def image_table(path: Path | None) -> Iterator[Callable[["Outcome"], None]]:
    """Write a line an image while it runs; nothing where `path` is None.

    An older file of that name stays until the new one is whole.

    Raises:
        OutputError: if the file cannot be written.
    """
    if path is None:
        yield lambda outcome: None
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # A device, such as /dev/stdout, has no name that could be taken.
    target = partial if path.is_file() or not path.exists() else path
    with _writing(path):
        stream = target.open("w", newline="", encoding="utf-8", errors="backslashreplace")
    try:
        writer = csv.DictWriter(stream, IMAGE_COLUMNS)
        with _writing(path):
            writer.writeheader()

        def write(outcome: "Outcome") -> None:
            with _writing(path):
                writer.writerow(image_row(outcome))

        yield write
        with _writing(path):
            stream.close()
            if target is partial:
                partial.replace(path)
    finally:
        with suppress(OSError):
            stream.close()
        partial.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise not_writable(path, error) from error


def tell_unreadable(outcome: "Outcome", unreadable: int) -> None:
    """Name an image that cannot be read; only the first `NAMED` of them."""
    error = getattr(outcome.result, "error", None)
    if error is not None and unreadable <= NAMED:
        print_error(f"{outcome.result.path}: {error}")
    if error is not None and unreadable == NAMED + 1:
        print_error("more images cannot be read; --csv FILE lists all of them")


def watched(outcomes: Iterable["Outcome"], total: int) -> Iterator["Outcome"]:
    """The outcomes, with a progress bar."""
    right = 0
    with progress_bars() as bars:
        task = bars.add_task("evaluating", total=total, note="")
        for done, outcome in enumerate(outcomes, start=1):
            right += outcome.is_correct
            bars.update(task, completed=done, note=f"clean accuracy {right / done:.1%}")
            yield outcome


def evaluation_summary(
    evaluation: "Evaluation",
    predictor: "Predictor",
    data: str,
    radii: Sequence[Fraction],
    seconds: float,
) -> dict[str, Any]:
    """The whole result in plain values, as `evaluate --json` prints it; radii in [0, 1] pixels."""
    return {
        "model": predictor.model,
        "engine": predictor.runtime.description,
        "sha256": predictor.sha256,
        "content_sha256": predictor.manifest.sha256,
        "data": data,
        "images": evaluation.images,
        "unreadable": evaluation.unreadable,
        "correct": evaluation.correct,
        "clean_accuracy": evaluation.clean_accuracy,
        "certified": [
            {
                "radius": float_lower(radius),
                "radius_255": float_lower(255 * radius),
                "exactly": in_255ths(radius),
                "images": evaluation.certified(radius),
                "accuracy": evaluation.certified_accuracy(radius),
                "images_by_statement": evaluation.compared(radius),
            }
            for radius in radii
        ],
        "average_certified_radius": evaluation.average_certified_radius,
        "mean_correct_radius": evaluation.mean_correct_radius,
        "cost_255": {
            name: {"mean": mean, "largest": largest}
            for name, (mean, largest) in evaluation.costs().items()
        },
        "guarantee": predictor.guarantee,
        "rounding": predictor.rounding,
        "assumptions": list(predictor.assumptions),
        "space": "input",
        "engine_seconds": predictor.engine_seconds,
        "certify_seconds": predictor.certify_seconds,
        "seconds": seconds,
        "images_per_second": evaluation.images / seconds,
    }


def _compared(summary: dict[str, Any]) -> list[str]:
    """Columns of the statements beside the one that was asked for."""
    names = summary["certified"][0]["images_by_statement"] if summary["certified"] else {}
    return [f">{name}" for name in names if name != summary["guarantee"]]


def _counts(count: int, total: int) -> tuple[str, str]:
    return f"{count} of {total}", f"{lower(Fraction(100 * count, total), 2)} %"


def write_evaluation(summary: dict[str, Any]) -> None:
    """The summary for people."""
    table = plain_table("", f">images ({summary['guarantee']})", ">share", *_compared(summary))
    total = summary["images"]
    table.add_row("clean accuracy", *_counts(summary["correct"], total))
    for entry in summary["certified"]:
        counts = entry["images_by_statement"]
        others = [str(counts[name[1:]]) for name in _compared(summary)]
        name = f"certified at {entry['exactly']}"
        table.add_row(name, *_counts(entry["images"], total), *others)
    average, of_correct = (
        lower(255 * Fraction(summary[name]), 1)
        for name in ("average_certified_radius", "mean_correct_radius")
    )
    table.add_row("average certified radius", "", f"{average}/255")
    table.add_row("mean radius of right answers", "", f"{of_correct}/255")
    print_table(table)
    for name, cost in summary["cost_255"].items():
        mean, largest = (upper(Fraction(cost[key]), 2) for key in ("mean", "largest"))
        print_line(
            f"{name} costs {mean}/255 of radius on average against network, at most {largest}"
        )
    print_note(
        f"{summary['images']} images in {summary['seconds']:.1f} s "
        f"({summary['images_per_second']:.0f} a second), {summary['unreadable']} unreadable (count "
        f"as wrong); engine {summary['engine']}, {summary['engine_seconds']:.2f} s; certificates "
        f"of all statements {summary['certify_seconds']:.2f} s",
        *guarantee_lines(
            summary["guarantee"],
            summary["assumptions"],
            "an image counts as certified at r where the answer is right and the radius larger "
            "than r; the average radius counts wrong answers as 0",
        ),
    )
