"""Certified accuracy and learning curves as pictures; drawn with matplotlib."""

import io
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from lipdeploy.decimals import lower
from lipdeploy.errors import OutputError
from lipdeploy.evaluation import Evaluation
from lipdeploy.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS_CURVES = {"loss": "training", "validation_loss": "validation"}
ACCURACY_CURVES = {
    "accuracy": "training",
    "validation_accuracy": "validation",
    "certified_36": "validation, certified at 36/255",
    "certified_72": "at 72/255",
    "certified_108": "at 108/255",
}
"""Columns of metrics.csv, and what they are called in the picture."""


def check_matplotlib(option: str = "--curve") -> None:
    """Raise OutputError where matplotlib is missing, before an evaluation that wants a picture."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OutputError(
            f"{option} needs matplotlib; pip install 'lipdeploy[plot]', or leave out {option}"
        ) from error


def write_curve(
    evaluations: Sequence[tuple[str, Evaluation]],
    radii: Sequence[Fraction],
    title: str,
    guarantee: str,
    path: Path,
) -> None:
    """Write a PNG: share of images that are right and certified, by radius in 1/255.

    Args:
        evaluations: with the names of what was evaluated.
        radii: that are marked, where there is one evaluation.
        title: above the picture.
        guarantee: the statement.
        path: of the picture.

    Raises:
        OutputError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for (name, evaluation), colour in zip(evaluations, _colours(len(evaluations)), strict=True):
        _draw(axes, name, evaluation, radii if len(evaluations) == 1 else (), colour)
    axes.set(
        xlabel=f"radius, l2 in 1/255 of the pixel range (guarantee: {guarantee})",
        ylabel="right and certified, %",
        xlim=(0, None),
        ylim=(0, 100),
    )
    axes.set_title(title, wrap=True, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    _write(figure, title, path)


def write_learning_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write a PNG: loss, and accuracies, by epoch.

    Args:
        rows: of metrics.csv, by column; what is NaN or missing is left out.
        path: the file.

    Raises:
        OutputError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), dpi=150, layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    _draw_columns(losses, rows, LOSS_CURVES, 1)
    losses.set(ylabel="loss")
    _draw_columns(accuracies, rows, ACCURACY_CURVES, 100)
    accuracies.set(ylabel="images, %", ylim=(0, 100))
    _write(figure, "Learning curves", path)


def _draw_columns(
    axes: "Axes", rows: Sequence[Mapping[str, float]], curves: Mapping[str, str], factor: float
) -> None:
    for column, name in curves.items():
        points = [(row.get("epoch", math.nan), factor * row.get(column, math.nan)) for row in rows]
        measured = [point for point in points if not any(map(math.isnan, point))]
        if measured:
            axes.plot(*zip(*measured, strict=True), marker=".", label=name)
    axes.set(xlabel="epoch")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")


def _write(figure: "Figure", title: str, path: Path) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Title": title})
    write_atomically(stream.getvalue(), path)


def _draw(
    axes: "Axes", name: str, evaluation: Evaluation, marked: Sequence[Fraction], colour: str
) -> None:
    """One curve, a dotted line at its clean accuracy, and a dot at each radius that is marked."""
    steps, shares = evaluation.curve()
    clean = Fraction(100 * evaluation.correct, evaluation.images)
    label = f"{name}: clean accuracy {lower(clean, 2)} %"
    axes.axhline(float(clean), color=colour, linestyle=":")
    # After the largest radius nothing is certified, before the next one all that is larger.
    steps_255, percent = [255 * r for r in steps], [100 * s for s in shares]
    axes.step(steps_255, percent, where="post", color=colour, label=label)
    for radius in marked:
        share = Fraction(100 * evaluation.certified(radius), evaluation.images)
        at = float(255 * radius), float(share)
        axes.plot(*at, "o", color=colour)
        axes.annotate(f"{lower(share, 2)} %", at, (4, 4), textcoords="offset points")


def _colours(count: int) -> list[str]:
    """The first is the project's blue, others those of the library."""
    return ["#1f5fa8", *(f"C{number}" for number in range(1, count))][:count]
