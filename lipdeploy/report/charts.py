"""The charts of the report: which curves and bars, and what they say in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.decimals import lower
from lipdeploy.report.evaluation import share
from lipdeploy.report.svg import Axis, Chart, Line

if TYPE_CHECKING:
    from lipdeploy.evaluation import Evaluation
    from lipdeploy.report.summary import Evaluated

RADIUS = "radius, l2 in 1/255 of the pixel range"
BARS = 24
POINTS = 300


@dataclass(frozen=True)
class Sandwich:
    """Accuracy under attack beside certified accuracy, on the same images.

    The true accuracy against every change of a size lies between the two.

    Attributes:
        attack: what attacked, with its settings, in words.
        images: that were attacked.
        radii_255: sizes of changes, l2 in 1/255, ascending.
        certified: share of the images that is right and certified at each.
        under_attack: share that stayed right under the attack at each.
        broken: certified images that were broken within their radius; anything but 0 is an error.
        median_ratio: of the smallest change found to the certified radius; None if none was found.
    """

    attack: str
    images: int
    radii_255: Sequence[float]
    certified: Sequence[float]
    under_attack: Sequence[float]
    broken: int
    median_ratio: float | None

    @classmethod
    def of(cls, found: dict[str, Any]) -> "Sandwich":
        """From the field `attack` of a summary, see `lipdeploy.report.attack.sandwich_summary`."""
        entries = sorted(found["sandwich"], key=lambda entry: entry["radius"])
        settings = found["settings"]
        return cls(
            attack=f"{' and '.join(settings['attacks'])}, seed {settings['seed']}",
            images=found["images"],
            radii_255=[entry["radius_255"] for entry in entries],
            certified=[entry["certified_accuracy"] for entry in entries],
            under_attack=[entry["accuracy_under_attack"] for entry in entries],
            broken=found["broken_certificates"],
            median_ratio=found["median_ratio"],
        )


def curve_chart(runs: Sequence["Evaluated"]) -> str:
    """Certified accuracy of one or several artifacts against the radius."""
    radii = [255 * run.evaluation.radii for run in runs]
    end = max(1.0, *(float(values.max()) for values in radii))
    first = runs[0].summary
    marks = [(e["radius_255"], 100 * e["accuracy"]) for e in first["certified"]]
    marks = [(radius, percent) for radius, percent in marks if radius <= end]
    dots = marks if len(runs) == 1 else []
    lines = [Line(_curve(values, end), marks=dots) for values in radii]
    points = ", ".join(f"{percent:.1f} % at {radius:.0f}/255" for radius, percent in marks)
    description = (
        f"A falling curve. {first['model']}: {share(first['correct'], first['images'])} right "
        f"without any change; certified {points}."
    )
    axes = Axis(RADIUS, end), Axis("right and certified, %", 100)
    names = [run.summary["model"] for run in runs]
    chart = Chart("curve", "Certified accuracy by radius", description, *axes, names)
    return chart.lines(lines)


def _curve(radii: NDArray[np.float64], end: float) -> list[tuple[float, float]]:
    """Radius and share of the radii beyond it in percent, as fine as a chart can show."""
    steps = np.linspace(0, end, POINTS)
    beyond = len(radii) - np.searchsorted(np.sort(radii), steps, side="right")
    return list(zip(steps.tolist(), (100 * beyond / len(radii)).tolist(), strict=True))


def histogram_chart(evaluation: "Evaluation") -> str:
    """How many answers, right and wrong, have which radius."""
    radii, is_right = 255 * evaluation.answer_radii, evaluation.is_right
    positive = radii > 0
    edges = np.linspace(0, max(1.0, float(radii.max())), BARS + 1)
    right, _ = np.histogram(radii[positive & is_right], edges)
    wrong, _ = np.histogram(radii[positive & ~is_right], edges)
    top = max(1, int((right + wrong).max()))
    stacks = [
        [(0.0, float(count)) for count in right],
        [(float(low), float(low + count)) for low, count in zip(right, wrong, strict=True)],
    ]
    description = (
        f"Bars of the number of answers by certified radius: {int(right.sum())} right and "
        f"{int(wrong.sum())} wrong answers have a radius; the largest is {edges[-1]:.0f}/255."
    )
    axes = Axis(RADIUS, float(edges[-1])), Axis("images", top)
    title = "Radii of right and wrong answers"
    chart = Chart("histogram", title, description, *axes, ["right", "wrong"])
    return chart.bars(edges.tolist(), stacks)


def calibration_chart(run: "Evaluated") -> str:
    """Share of right answers against the largest softmax probability."""
    bins = run.summary["calibration"]["bins"]
    found = [(100 * part["confidence"], 100 * part["accuracy"]) for part in bins]
    error = lower(Fraction(100 * run.summary["calibration"]["expected_error"]), 1)
    lines = [
        Line(found, is_step=False, marks=found),
        Line([(0, 0), (100, 100)], is_step=False),
    ]
    description = (
        "Share of right answers against confidence, beside the diagonal on which both are equal; "
        f"the mean distance is {error} percentage points."
    )
    axes = Axis("largest softmax probability, %", 100), Axis("right answers, %", 100)
    names = ["this model", "confidence and share of right answers equal"]
    chart = Chart("calibration", "Reliability of the confidence", description, *axes, names)
    return chart.lines(lines)


def sandwich_chart(sandwich: Sandwich) -> str:
    """Certified accuracy below, accuracy under attack above."""
    shares = sandwich.under_attack, sandwich.certified
    lines = [
        Line([(r, 100 * a) for r, a in zip(sandwich.radii_255, part, strict=True)], is_step=False)
        for part in shares
    ]
    description = (
        "Two falling curves; the accuracy under attack lies above the certified accuracy, and the "
        "true accuracy against changes of each size lies between them."
    )
    end = max(1.0, *sandwich.radii_255)
    axes = Axis(RADIUS.replace("radius", "change"), end), Axis("right, %", 100)
    names = ["under attack", "certified"]
    return Chart("sandwich", "Certified and attacked", description, *axes, names).lines(lines)
