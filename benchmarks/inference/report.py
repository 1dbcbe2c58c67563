"""The results as a table and as a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from inference.engines import PLANNED
from inference.opponents import SERIES_6, SERIES_15
from inference.plain import PLAIN
from inference.results import Results, Row
from lipdeploy.report.console import plain_table, print_line, print_table

CENTRE = "centre"
COLUMNS: dict[str, Callable[[Row], str]] = {
    "opponent": lambda row: row.opponent,
    "how": lambda row: row.kind,
    ">ms": lambda row: f"{row.milliseconds:.2f}",
    ">quartiles": lambda row: "{:.2f} to {:.2f}".format(*row.quartiles),
    ">certified ms": lambda row: _or_dash(row.certified, "{:.2f}"),
    ">images/s": lambda row: f"{row.images:.0f}",
    ">times 15 terms": lambda row: _or_dash(row.speedup, "{:.2f}"),
    ">of MatMul": lambda row: _or_dash(row.matmul, "{:.0%}"),
    ">of bandwidth": lambda row: f"{row.bandwidth:.0%}",
    ">peak MB": lambda row: _or_dash(row.peak and row.peak / 1e6, "{:.0f}"),
    ">difference": lambda row: _or_dash(row.difference, "{:.1e}"),
}
"""Columns of the table; ">" is flushed right."""


def _or_dash(value: float | None, text: str) -> str:
    return "-" if value is None else text.format(value)


def table_of(rows: Sequence[Row]) -> Table:
    """A line for each row, all of one network and batch."""
    table = plain_table(*COLUMNS)
    for row in rows:
        table.add_row(*(cell(row) for cell in COLUMNS.values()))
    return table


def print_results(results: Results) -> None:
    """Print a table for each network and batch, then notes and what was skipped."""
    print_line(", ".join(f"{name} {value}" for name, value in results.machine.items()), "")
    groups = dict.fromkeys((row.label, row.batch) for row in results.rows)
    for label, batch in groups:
        print_line(f"{label}, batch {batch}")
        print_table(table_of([r for r in results.rows if (r.label, r.batch) == (label, batch)]))
        print_line("")
    print_line(*results.notes, *(f"skipped: {line}" for line in results.skipped))


AXES: dict[str, Callable[[Row], float]] = {
    "batch": lambda row: row.batch,
    "width": lambda row: row.width,
    "depth": lambda row: row.depth,
    "image size": lambda row: row.image_size,
}
DRAWN = (SERIES_15, SERIES_6, PLANNED, PLAIN)
CENTRE_BATCH = 64


def points(rows: Sequence[Row], factor: str, opponent: str) -> list[tuple[float, float]]:
    """How the milliseconds an image of an opponent grow with one factor around the centre."""
    drawn = [row for row in varied(rows, factor) if row.opponent == opponent]
    return sorted((AXES[factor](row), 1e3 / row.images) for row in drawn)


def varied(rows: Sequence[Row], factor: str) -> list[Row]:
    """Rows of cases that vary a factor, and the centre, of all its batches for that factor only."""
    return [
        row
        for row in rows
        if row.factor == factor
        or (row.factor == CENTRE and (factor == "batch" or row.batch == CENTRE_BATCH))
    ]


def ticks(rows: Sequence[Row], factor: str) -> dict[float, str]:
    """Where a factor was measured, and what to write there: the batch, too, where it is another."""
    labels = {}
    for row in varied(rows, factor):
        at = AXES[factor](row)
        other = factor != "batch" and row.batch != CENTRE_BATCH
        labels[at] = f"{at:.0f}\n(batch {row.batch})" if other else f"{at:.0f}"
    return labels


def write_picture(results: Results, path: Path) -> None:
    """Write a PNG: time an image by batch, width, depth and image size, one panel each."""
    figure = Figure(figsize=(11, 7), dpi=130, layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, factor in zip(panels, AXES, strict=True):
        for opponent in DRAWN:
            line = points(results.rows, factor, opponent)
            axes.plot(*zip(*line, strict=True), "o-", label=opponent) if line else None
        axes.set(xlabel=factor, ylabel="ms an image", xscale="log", yscale="log")
        labels = ticks(results.rows, factor)
        axes.set_xticks(list(labels), list(labels.values()), minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.suptitle("Certified images in PyTorch and in engines: one factor varied")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
