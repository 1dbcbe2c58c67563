"""The report of an evaluation: one HTML file that needs no network and no script."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lipdeploy.breakdown import Extremes, extremes
from lipdeploy.decimals import exact_share, lower, upper
from lipdeploy.errors import ImageError, OutputError
from lipdeploy.files import write_atomically
from lipdeploy.images import ImageSource, decode, name_of
from lipdeploy.report import charts
from lipdeploy.report.console import visible
from lipdeploy.report.corruptions import corruption_notes, inside_line
from lipdeploy.report.evaluation import (
    compared_statements,
    comparison_notes,
    interval,
    share,
    share_upper,
)
from lipdeploy.report.prediction import MEANINGS
from lipdeploy.versions import versions

if TYPE_CHECKING:
    import jinja2

    from lipdeploy.report.summary import Evaluated

PICTURES = 6
"""Images of each kind that are shown."""
THUMBNAIL = 96
"""Largest side of their pictures, in pixels."""
MISTAKES = 15
ALTER = {
    "program": "alter the answer",
    "network": "alter the answer of the exact network (the engine may print another class, "
    "without a radius)",
    "no-certified-flip": "give another class with a radius (the engine may print one without)",
}
"""What no change inside of a radius can do, by the statement."""
CLASSES_OPEN = 20
"""With more classes than that, their table is folded."""


@dataclass(frozen=True)
class Picture:
    """One image of the test set and what was answered.

    Attributes:
        name: file, or position in the dataset.
        data: its thumbnail as a data URI; None where it cannot be read any more.
        true_class: what it is.
        predicted: what was answered.
        radius: of the answer, l2 in [0, 1] pixels.
    """

    name: str
    data: str | None
    true_class: str
    predicted: str
    radius: float


def check_jinja() -> None:
    """Raise OutputError where jinja2 is missing, before an evaluation that wants a report."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise OutputError(
            "--report needs jinja2; pip install 'lipdeploy[report]', or leave out --report"
        ) from error


def write_page(runs: Sequence["Evaluated"], command: str, path: Path) -> None:
    """Write the report: the first artifact in full, others beside it.

    Args:
        runs: at least one artifact, all on the same images; what attacks and corruptions found on
            the first is shown.
        command: that makes the report again.
        path: of the file.

    Raises:
        OutputError: if the file cannot be written.
    """
    page = render(runs, command, datetime.now(UTC))
    write_atomically(page.encode("utf-8", "backslashreplace"), path)


def render(runs: Sequence["Evaluated"], command: str, when: datetime) -> str:
    """The page as text; see `write_page`."""
    from markupsafe import Markup

    found = runs[0].summary.get("attack")
    sandwich = None if found is None else charts.SandwichChart.of(found)
    environment = _environment()
    style = environment.get_template("style.css").render()
    drawn = {name: Markup(svg) for name, svg in _charts(runs, sandwich).items()}
    return environment.get_template("evaluation.html").render(
        style=Markup(style),
        charts=drawn,
        command=command,
        when=f"{when:%Y-%m-%d %H:%M} UTC",
        sandwich=sandwich,
        **_content(runs),
    )


def _environment() -> "jinja2.Environment":
    """What fills in the templates; everything is escaped but what is marked as safe."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lipdeploy.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {
        "in_255": lambda radius: f"{lower(255 * Fraction(radius), 1)}/255",
        "above": _above,
        "below": _below,
        "interval": interval,
        "points": lambda value: f"{100 * value:+.2f}",
        "count": lambda value: f"{value:,}",
        "percent": lambda value, total: f"{lower(100 * exact_share(value, total), 1)} %",
        "percent_upper": lambda value: upper(100 * Fraction(value), 1),
        "plain": _plain,
    }
    environment.globals |= {"share": share, "share_upper": share_upper}
    return environment


def _above(value: float, digits: int = 2) -> str:
    return upper(value, digits)


def _below(value: float, digits: int = 2) -> str:
    return lower(value, digits)


def _plain(value: object) -> str:
    """A value of a manifest, without the signs of a program."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return str(value)


def _charts(runs: Sequence["Evaluated"], sandwich: charts.SandwichChart | None) -> dict[str, str]:
    drawn = {
        "curve": charts.curve_chart(runs),
        "histogram": charts.histogram_chart(runs[0].evaluation),
        "calibration": charts.calibration_chart(runs[0]),
    }
    if "corruptions" in runs[0].summary:
        drawn["corruption"] = charts.corruption_chart(runs[0].summary["corruptions"])
    return drawn | ({} if sandwich is None else {"sandwich": charts.sandwich_chart(sandwich)})


def _content(runs: Sequence["Evaluated"]) -> dict[str, Any]:
    first = runs[0]
    summary = first.summary
    shifts = summary.get("corruptions")
    found = extremes(first.evaluation, PICTURES)
    return {
        "summary": summary,
        "summaries": [run.summary for run in runs],
        "contradicted": [run.summary for run in runs if run.is_contradicted],
        "alter": ALTER[summary["guarantee"]],
        "others": compared_statements(summary),
        "comparison_notes": comparison_notes([run.summary for run in runs]),
        "meaning": MEANINGS[summary["guarantee"]],
        "meanings": MEANINGS,
        "mistakes": summary["mistakes"][:MISTAKES],
        "corruptions": shifts,
        "corruption_notes": [inside_line(shifts), *corruption_notes(shifts)] if shifts else [],
        "is_long": len(summary["classes"]) > CLASSES_OPEN,
        "pictures": _pictures(first, found),
        "versions": versions(),
    }


def _pictures(run: "Evaluated", found: Extremes) -> list[tuple[str, str, list[Picture]]]:
    """Kinds of images with a title, what they are, and the pictures; kinds without any left out."""
    kinds = [
        ("Most robust right answers", "right answers with the largest radii", found.largest),
        ("Least robust right answers", "right answers with the smallest radii", found.smallest),
        ("Most stable mistakes", "wrong answers with the largest radii", found.wrong),
    ]
    return [
        (title, what, [_picture(run, index) for index in indices])
        for title, what, indices in kinds
        if indices
    ]


def _picture(run: "Evaluated", index: int) -> Picture:
    evaluation, source = run.evaluation, run.images.sources[index]
    name = name_of(source)
    truth, answer = evaluation.true[index], evaluation.predicted[index]
    return Picture(
        f"image {index}" if name is None else Path(name).name,
        thumbnail(source),
        evaluation.classes[truth],
        evaluation.classes[answer],
        float(evaluation.answer_radii[index]),
    )


def thumbnail(source: ImageSource) -> str | None:
    """An image as a data URI, at most `THUMBNAIL` pixels a side; None if it cannot be read."""
    try:
        pixels = decode(source).pixels
    except ImageError:
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
