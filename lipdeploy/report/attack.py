"""What attacks found: the sandwich as a table and as JSON, and files for whoever looks closer."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lipdeploy.decimals import float_lower, in_255ths, lower, upper
from lipdeploy.files import make_writable_folder, write_atomically
from lipdeploy.report.console import (
    plain_table,
    print_error,
    print_note,
    print_table,
    progress_bars,
)
from lipdeploy.report.evaluation import share, share_upper
from lipdeploy.sandwich import Adversarial, Attacked, Sandwich

if TYPE_CHECKING:
    from lipdeploy.predictor import Predictor

LIMITS = (
    "an attack can show that a certificate is false, never that it is true: a small error in the "
    "bounds hides in the gap between certificate and attack ('lipdeploy verify' proves them)"
)

FLIPS = (
    "allows the engine another class inside of the ball, with the radius 0: the accuracy under "
    "attack can be below the certified one, and a ratio below 1; only under program the truth lies "
    "between them"
)
"""What the statements other than *program* leave open."""

Command = Callable[[Path, Path], str]
"""What to type to look at a pair of files again."""

COLUMNS = (
    "path",
    "class",
    "predicted",
    "correct",
    "radius_255",
    "distance_255",
    "ratio",
    "attack",
    "adversarial_class",
    "contradicts",
)


def attack_row(item: Attacked, classes: Sequence[str]) -> dict[str, Any]:
    """One image in plain values; lengths in 1/255, null where there is none."""
    nearest = item.nearest
    return {
        "path": item.result.path,
        "class": item.true_class,
        "predicted": getattr(item.result, "label", None),
        "correct": int(item.is_right),
        "radius_255": item.radius_255,
        "distance_255": item.distance_255 if item.distance_255 < inf else None,
        "ratio": item.ratio,
        "attack": nearest.attack if nearest else None,
        "adversarial_class": classes[nearest.class_index] if nearest else None,
        "contradicts": int(item.broken is not None),
    }


def write_attack_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a CSV line an image; raises OutputError if it cannot be written."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(stream.getvalue().encode(errors="backslashreplace"), path)


def watched_attack(items: Iterable[Attacked], total: int) -> Iterator[Attacked]:
    """The attacked images, with a progress bar."""
    right = broken = 0
    with progress_bars() as bars:
        task = bars.add_task("attacking", total=total, note="")
        for done, item in enumerate(items, start=1):
            right, broken = right + item.is_right, broken + (item.broken is not None)
            note = f"{right} right, {broken} certificates broken"
            bars.update(task, completed=done, note=note)
            yield item


def tell_broken(
    item: Attacked, number: int, folder: Path, predictor: "Predictor", command: Command
) -> dict[str, Any] | None:
    """Say in red that a certificate is false and keep the pair; nothing for any other image.

    Args:
        item: an attacked image.
        number: counts the pairs, in the names of the files.
        folder: where the pair goes; made where it is missing.
        predictor: whose certificate it is.
        command: what to type to look at the pair again.

    Returns:
        The names of the files and what they show.

    Raises:
        OutputError: if they cannot be written.
    """
    if item.broken is None or item.pixels is None:
        return None
    make_writable_folder(folder)
    stem = folder / f"broken-{number:04d}"
    first, second = Path(f"{stem}-original.npy"), Path(f"{stem}-adversarial.npy")
    for path, pixels in ((first, item.pixels), (second, item.broken.pixels)):
        _write_pixels(pixels, path)
    label = predictor.manifest.classes[item.broken.class_index]
    print_error(
        f"SOUNDNESS FAILURE: {item.result.path}: certified {item.true_class} within "
        f"{lower(item.radius_255, 2)}/255, but {item.broken.attack} made it {label} at "
        f"{upper(item.broken.distance_255, 2)}/255; use this model no more; to see it again type: "
        f"{command(first, second)}"
    )
    record = _pair_record(item, item.broken, label, predictor) | {
        "original": str(first),
        "adversarial": str(second),
    }
    write_atomically(json.dumps(record, indent=1).encode(), Path(f"{stem}.json"))
    return record


def _pair_record(
    item: Attacked, broken: Adversarial, label: str, predictor: "Predictor"
) -> dict[str, Any]:
    return {
        "path": item.result.path,
        "class": item.true_class,
        "adversarial_class": label,
        "radius_255": item.radius_255,
        "distance_255": broken.distance_255,
        "attack": broken.attack,
        "guarantee": predictor.guarantee,
        "model": predictor.model,
        "sha256": predictor.sha256,
        "engine": predictor.runtime.description,
    }


def _write_pixels(pixels: np.ndarray[Any, np.dtype[np.float32]], path: Path) -> None:
    """The exact input as an array, and a picture of it, rounded to 8 bits, for the eye."""
    from PIL import Image

    stream = io.BytesIO()
    np.save(stream, pixels, allow_pickle=False)
    write_atomically(stream.getvalue(), path)
    picture, stream = np.rint(pixels.transpose(1, 2, 0)).astype(np.uint8), io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    write_atomically(stream.getvalue(), path.with_suffix(".png"))


def sandwich_summary(
    sandwich: Sandwich,
    radii: Sequence[Fraction],
    guarantee: str,
    settings: dict[str, Any],
    broken: Sequence[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """The whole result in plain values, the field `attack` of `evaluate --json`.

    Args:
        sandwich: the counts.
        radii: those asked for, l2 in [0, 1] pixels.
        guarantee: the statement that the certificates make.
        settings: of the attacks, with their names.
        broken: what `tell_broken` gave.
        seconds: time of predictions and attacks.
    """
    total = sandwich.images
    return {
        "images": total,
        "attacked": sandwich.right,
        "guarantee": guarantee,
        "settings": settings,
        "sandwich": [
            {
                "radius": float_lower(radius),
                "radius_255": float_lower(255 * radius),
                "exactly": in_255ths(radius),
                "certified": sandwich.certified(radius),
                "under_attack": sandwich.under_attack(radius),
                "undecided": sandwich.undecided(radius),
                "certified_accuracy": sandwich.certified(radius) / total if total else 0.0,
                "accuracy_under_attack": sandwich.under_attack(radius) / total if total else 0.0,
            }
            for radius in radii
        ],
        "compared": sandwich.compared,
        "median_ratio": sandwich.median_ratio,
        "smallest_ratio": sandwich.smallest_ratio,
        "broken_certificates": sandwich.broken,
        "pairs": list(broken),
        "seconds": seconds,
        "seconds_per_image": seconds / total if total else 0.0,
    }


def write_sandwich(summary: dict[str, Any]) -> None:
    """The summary for people."""
    print_table(_sandwich_table(summary))
    if summary["median_ratio"] is not None:
        median, smallest = (Fraction(summary[f"{name}_ratio"]) for name in ("median", "smallest"))
        print_table(_ratios(lower(median, 3), lower(smallest, 3), summary["compared"]))
    settings = summary["settings"]
    print_note(
        f"attacked {summary['attacked']} right answers of {summary['images']} images in "
        f"{summary['seconds']:.0f} s ({summary['seconds_per_image']:.2f} s an image) with "
        f"{' and '.join(settings['attacks'])}, seed {settings['seed']}; each adversarial example "
        "was confirmed by the engine",
        f"broken certificates: {summary['broken_certificates']}; {LIMITS}",
    )
    if summary["guarantee"] != "program":
        print_note(f"the statement {summary['guarantee']} {FLIPS}")


def _sandwich_table(summary: dict[str, Any]) -> Any:  # noqa: ANN401
    """A line a radius, with the truth in the middle where the statement puts it there."""
    total, is_between = summary["images"], summary["guarantee"] == "program"
    heads, between = (("", ">robust", ""), ("<=", "truth", "<=")) if is_between else ((), ())
    table = plain_table("", ">certified", *heads, ">under attack", ">undecided")
    for entry in summary["sandwich"]:
        low, high = entry["certified"], entry["under_attack"]
        table.add_row(
            f"at {entry['exactly']}",
            f"{low} ({share(low, total)})",
            *between,
            f"{high} ({share_upper(high, total)})",
            str(entry["undecided"]),
        )
    return table


def _ratios(median: str, smallest: str, count: int) -> Any:  # noqa: ANN401
    table = plain_table("smallest perturbation found / certified radius", ">")
    table.add_row("median", f"{median}")
    table.add_row("smallest", f"{smallest}")
    table.add_row("images", f"{count}")
    return table
