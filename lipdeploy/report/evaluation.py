"""An evaluation on the terminal: while it runs, its tables, and artifacts side by side."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lipdeploy.decimals import exact_share, lower, upper
from lipdeploy.report.console import (
    cell,
    plain_table,
    print_error,
    print_line,
    print_note,
    print_table,
    progress_bars,
)
from lipdeploy.report.prediction import guarantee_lines

if TYPE_CHECKING:
    from lipdeploy.evaluation import Outcome
    from lipdeploy.report.summary import Summary

NAMED = 10
"""Unreadable images that are named."""
CLASSES_SHOWN = 20
MISTAKES_SHOWN = 5


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


def compared_statements(summary: "Summary") -> list[str]:
    """Names of the statements beside the one that was asked for."""
    names = summary["certified"][0]["images_by_statement"] if summary["certified"] else {}
    return [name for name in names if name != summary["guarantee"]]


def share(count: int, total: int) -> str:
    """In percent, rounded down."""
    return f"{lower(Fraction(100 * count, total), 2)} %"


def share_upper(count: int, total: int) -> str:
    """In percent, rounded up."""
    return f"{upper(Fraction(100 * count, total), 2)} %"


def interval(values: Sequence[float], total: int) -> str:
    """An interval of shares of `total` in percent, rounded outward where it is no such share."""
    low, high = (100 * exact_share(value, total) for value in values)
    return f"{lower(low, 2)} to {upper(high, 2)} %"


def write_evaluation(summary: "Summary") -> None:
    """The summary of one artifact for people."""
    _write_accuracies(summary)
    for name, cost in summary["cost_255"].items():
        mean, largest = (upper(Fraction(cost[key]), 2) for key in ("mean", "largest"))
        print_line(
            f"{name} costs {mean}/255 of radius on average against network, at most {largest}"
        )
    _write_quantiles(summary)
    _write_classes(summary)
    _write_mistakes(summary)
    print_note(*_notes(summary))


def _write_accuracies(summary: "Summary") -> None:
    others = compared_statements(summary)
    names = [f">images ({summary['guarantee']})", ">share", ">95 % interval", ">all change by"]
    table = plain_table("", *names, *(f">{name}" for name in others))
    total, right = summary["images"], summary["correct"]
    counts = f"{right} of {total}", share(right, total), interval(summary["clean_interval"], total)
    table.add_row("clean accuracy", *counts)
    for entry in summary["certified"]:
        table.add_row(
            f"certified at {entry['exactly']}",
            f"{entry['images']} of {total}",
            share(entry["images"], total),
            interval(entry["interval"], total),
            f"{lower(entry['equal_change_255'], 2)}/255",
            *(str(entry["images_by_statement"][name]) for name in others),
        )
    for text, name in (
        ("average certified radius", "average_certified_radius"),
        ("mean radius of right answers", "mean_correct_radius"),
    ):
        table.add_row(text, "", f"{lower(255 * Fraction(summary[name]), 1)}/255")
    print_table(table)


def _write_quantiles(summary: "Summary") -> None:
    if summary["radius_quantiles"]:
        parts = [
            f"{100 * entry['quantile']:.0f} % {lower(255 * Fraction(entry['radius']), 1)}"
            for entry in summary["radius_quantiles"]
        ]
        print_line(f"quantiles of the radii of right answers, in 1/255: {', '.join(parts)}")


def _write_classes(summary: "Summary") -> None:
    radii = [entry["exactly"] for entry in summary["certified"]]
    table = plain_table("class", ">images", ">right", *(f">{r}" for r in radii), ">mean radius")
    rows = summary["classes"]
    if len(rows) > CLASSES_SHOWN:
        rows = sorted(rows, key=lambda row: _share_of(row, row["correct"]))[:CLASSES_SHOWN]
        print_note(f"the {CLASSES_SHOWN} classes with the fewest right answers; --json has all")
    for row in rows:
        counts = [row["correct"], *row["certified"]]
        shares = [share(count, row["images"]) if row["images"] else "" for count in counts]
        mean = f"{lower(255 * Fraction(row['mean_correct_radius']), 1)}/255"
        table.add_row(cell(row["name"]), str(row["images"]), *shares, mean)
    print_line("")
    print_table(table)


def _share_of(row: dict[str, Any], count: int) -> float:
    return count / row["images"] if row["images"] else 1.0


def _write_mistakes(summary: "Summary") -> None:
    wrong = summary["images"] - summary["correct"] - summary["unreadable"]
    if not wrong:
        return
    print_line("")
    certified = summary["wrong_and_certified"]
    print_line(f"{certified} of {wrong} wrong answers have a radius: they are stable, not right")
    table = plain_table("class", "taken for", ">images", ">with a radius", ">largest")
    for row in summary["mistakes"][:MISTAKES_SHOWN]:
        largest = f"{lower(255 * Fraction(row['largest_radius']), 1)}/255"
        names = cell(row["true_class"]), cell(row["predicted"])
        table.add_row(*names, str(row["images"]), str(row["certified"]), largest)
    print_table(table)


def _notes(summary: "Summary") -> tuple[str, ...]:
    resumed = f", {summary['resumed']} of them known before" if summary["resumed"] else ""
    return (
        f"{summary['images']} images in {summary['seconds']:.1f} s "
        f"({summary['images_per_second']:.0f} a second{resumed}), {summary['unreadable']} "
        f"unreadable (count as wrong); engine {summary['engine']}, "
        f"{summary['engine_seconds']:.2f} s; certificates of all statements "
        f"{summary['certify_seconds']:.2f} s",
        "95 % interval: bootstrap over the images, so of images like these; all change by: the "
        f"largest equal change of all {summary['input_numbers']} numbers of an input with that "
        "radius",
        *guarantee_lines(
            summary["guarantee"],
            summary["assumptions"],
            "an image counts as certified at r where the answer is right and the radius larger "
            "than r; the average radius counts wrong answers as 0",
        ),
    )


def comparison_notes(summaries: Sequence["Summary"]) -> list[str]:
    """Why radii of different artifacts are not of one kind, where they are not."""
    sizes = [summary["network"]["image_size"] for summary in summaries]
    guarantees = [summary["guarantee"] for summary in summaries]
    notes = []
    if len(set(sizes)) > 1:
        notes.append(
            f"the models take images of {' and '.join(f'{n} x {n}' for n in dict.fromkeys(sizes))} "
            "pixels: each radius is a distance in its model's own input, and one number is not the "
            "same change of a picture in both"
        )
    if len(set(guarantees)) > 1:
        notes.append(
            f"the radii make different statements, {' and '.join(dict.fromkeys(guarantees))}; "
            "compare the same one with --guarantee network"
        )
    return notes


def write_side_by_side(summaries: Sequence["Summary"]) -> None:
    """A line an artifact, then what it differs from the first by, image for image."""
    first = summaries[0]
    radii = [entry["exactly"] for entry in first["certified"]]
    names = [">clean", *(f">certified at {radius}" for radius in radii), ">average radius"]
    table = plain_table("model", *names, "guarantee")
    for summary in summaries:
        entries = [(summary["correct"], summary["clean_interval"])]
        entries += [(entry["images"], entry["interval"]) for entry in summary["certified"]]
        total = summary["images"]
        shares = [f"{share(n, total)} ({interval(i, total)})" for n, i in entries]
        average = f"{lower(255 * Fraction(summary['average_certified_radius']), 1)}/255"
        table.add_row(cell(summary["model"]), *shares, average, summary["guarantee"])
    print_table(table)
    for summary in summaries[1:]:
        _write_differences(summary["against"], summary["model"])
    print_note(
        f"{first['images']} images of {first['data']}; in brackets 95 % intervals by bootstrap "
        "over the images; differences are of the same images, in percentage points"
    )


def _write_differences(against: dict[str, Any], model: str) -> None:
    print_line("", f"{model} against {against['model']}")
    table = plain_table("", ">difference", ">95 % interval", ">only this", ">only the first")
    for row in against["differences"]:
        name = f"certified at {row['exactly']}" if row["exactly"] else "clean accuracy"
        low, high = row["interval"]
        table.add_row(
            name,
            f"{100 * row['difference']:+.2f}",
            f"{100 * low:+.2f} to {100 * high:+.2f}",
            str(row["only_this"]),
            str(row["only_other"]),
        )
    print_table(table)
