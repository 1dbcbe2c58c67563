"""An evaluation as a table, one JSON object, and a CSV file with a line an image."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipdeploy.files import not_writable
from lipdeploy.report.console import plain_table, print_note, print_table, progress_bars

if TYPE_CHECKING:
    from lipdeploy.evaluation import Evaluation, Outcome
    from lipdeploy.predictor import Predictor

IMAGE_COLUMNS = (
    "path",
    "class",
    "predicted",
    "correct",
    "radius",
    "radius_255",
    "radius_file",
    "integer_budget",
    "error",
)


def image_row(outcome: "Outcome") -> dict[str, Any]:
    """One line of the CSV file; radii as in `predict`, also where the answer is wrong."""
    result = outcome.result
    row = {"path": result.path, "class": outcome.true_class, "correct": int(outcome.is_correct)}
    certificate = getattr(result, "certificate", None)
    row |= {name: getattr(certificate, name, None) for name in IMAGE_COLUMNS[4:8]}
    return row | {
        "predicted": getattr(result, "label", None),
        "error": getattr(result, "error", None),
    }


@contextmanager
def image_table(path: Path | None) -> Iterator[Callable[["Outcome"], None]]:
    """Write a line an image while it runs; nothing where `path` is None.

    Raises:
        OutputError: if the file cannot be written.
    """
    if path is None:
        yield lambda outcome: None
        return
    with _writing(path):
        stream = path.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        writer = csv.DictWriter(stream, IMAGE_COLUMNS)
        writer.writeheader()

    def write(outcome: "Outcome") -> None:
        with _writing(path):
            writer.writerow(image_row(outcome))

    try:
        yield write
    finally:
        with _writing(path):
            stream.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise not_writable(path, error) from error


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
        "sha256": predictor.manifest.sha256,
        "data": data,
        "images": evaluation.images,
        "unreadable": evaluation.unreadable,
        "correct": evaluation.correct,
        "clean_accuracy": evaluation.clean_accuracy,
        "certified": [
            {
                "radius": float(radius),
                "radius_255": float(255 * radius),
                "images": evaluation.certified(radius),
                "accuracy": evaluation.certified_accuracy(radius),
            }
            for radius in radii
        ],
        "average_certified_radius": evaluation.average_certified_radius,
        "mean_correct_radius": evaluation.mean_correct_radius,
        "guarantee": predictor.guarantee,
        "assumptions": list(predictor.assumptions),
        "space": "input",
        "seconds": seconds,
        "images_per_second": evaluation.images / seconds,
    }


def write_evaluation(summary: dict[str, Any]) -> None:
    """The summary for people."""
    table = plain_table("", ">images", ">share")
    rows = [("clean accuracy", summary["correct"], summary["clean_accuracy"])]
    rows += [
        (f"certified at {entry['radius_255']:g}/255", entry["images"], entry["accuracy"])
        for entry in summary["certified"]
    ]
    for name, count, share in rows:
        table.add_row(name, f"{count} of {summary['images']}", f"{share:.1%}")
    average, of_correct = (
        255 * summary[name] for name in ("average_certified_radius", "mean_correct_radius")
    )
    table.add_row("average certified radius", "", f"{average:.1f}/255")
    table.add_row("mean radius of right answers", "", f"{of_correct:.1f}/255")
    print_table(table)
    print_note(
        f"{summary['images']} images in {summary['seconds']:.1f} s "
        f"({summary['images_per_second']:.0f} a second), {summary['unreadable']} unreadable (count "
        f"as wrong); engine {summary['engine']}\n"
        f"guarantee {summary['guarantee']}: an image counts as certified at r where the answer is "
        "right and no change of the network's input of l2 norm up to r changes it; the average "
        f"radius counts wrong answers as 0; assumes {'; '.join(summary['assumptions'])}"
    )
