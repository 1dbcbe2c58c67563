"""What attacks found: the sandwich as a table and as JSON, and files for whoever looks closer."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Any

from lipdeploy.decimals import float_lower, in_255ths, lower
from lipdeploy.files import write_atomically
from lipdeploy.report.broken import BrokenPair
from lipdeploy.report.console import (
    plain_table,
    print_note,
    print_table,
    progress_bars,
)
from lipdeploy.report.evaluation import share, share_upper
from lipdeploy.sandwich import Attacked, Sandwich

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


def broken_pair(item: Attacked, classes: Sequence[str]) -> BrokenPair | None:
    """What contradicts the certificate of an attacked image; None if nothing does.

    Args:
        item: an attacked image.
        classes: names in the order of the model.
    """
    found = item.broken
    if found is None or item.pixels is None:
        return None
    return BrokenPair(
        name=item.result.path,
        true_class=item.true_class,
        # Only right answers are attacked.
        certified_class=item.true_class,
        radius_255=item.radius_255,
        original=item.pixels,
        other=found.pixels,
        other_class=classes[found.class_index],
        distance_255=found.distance_255,
        how=found.attack,
        made_by={"attack": found.attack},
    )


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
        broken: the records of `BrokenPairs`.
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
