"""The charts of the report: which curves and bars, and what they say in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.decimals import upper
from lipdeploy.report.evaluation import share
from lipdeploy.report.svg import Axis, Chart, Line

if TYPE_CHECKING:
    from lipdeploy.evaluation import Evaluation
    from lipdeploy.report.summary import Evaluated

RADIUS = "radius, l2 in 1/255 of the pixel range"
BARS = 24
POINTS = 300
SERIES = 6
"""Lines that can be told apart."""


@dataclass(frozen=True)
class SandwichChart:
    """Accuracy under attack beside certified accuracy, on the same images.

    Under the guarantee *program* the true accuracy against every change of a size lies between the
    two (see `lipdeploy.sandwich`).

    Attributes:
        attack: what attacked, with its settings, in words.
        guarantee: the statement that the certificates make.
        images: all, also wrong answers, which were not attacked.
        right: right answers.
        radii_255: sizes of changes, l2 in 1/255, ascending; at least one.
        certified: images that are right and certified at each.
        under_attack: images that stayed right under the attack at each.
        broken: certified images that were broken within their radius; anything but 0 is an error.
        median_ratio: of the smallest change found to the certified radius; None if none was found.
    """

    attack: str
    guarantee: str
    images: int
    right: int
    radii_255: Sequence[float]
    certified: Sequence[int]
    under_attack: Sequence[int]
    broken: int
    median_ratio: float | None

    @classmethod
    def of(cls, found: dict[str, Any]) -> "SandwichChart":
        """From the field `attack` of a summary, see `lipdeploy.report.attack.sandwich_summary`."""
        entries = sorted(found["sandwich"], key=lambda entry: entry["radius"])
        settings = found["settings"]
        return cls(
            attack=f"{' and '.join(settings['attacks'])}, seed {settings['seed']}",
            guarantee=found["guarantee"],
            images=found["images"],
            right=found["attacked"],
            radii_255=[entry["radius_255"] for entry in entries],
            certified=[entry["certified"] for entry in entries],
            under_attack=[entry["under_attack"] for entry in entries],
            broken=found["broken_certificates"],
            median_ratio=found["median_ratio"],
        )

    @property
    def is_between(self) -> bool:
        """Whether the true accuracy of the engine lies between the two."""
        return self.guarantee == "program"

    def known(self) -> tuple[Line, Line]:
        """Accuracy under attack and certified accuracy in percent, no more than is known of them.

        Both fall. So between two radii at most as many are right under attack as at the smaller
        one, and at least as many certified as at the larger one; beyond the largest nothing is
        known to be certified.
        """
        high, low = self._percent(self.under_attack), self._percent(self.certified)
        before = [0.0, *self.radii_255]
        above = zip(before, [*self._percent([self.right]), *high], strict=True)
        below = zip(before, [*low, low[-1]], strict=True)
        return (
            Line(list(above), marks=list(zip(self.radii_255, high, strict=True))),
            Line(list(below), marks=list(zip(self.radii_255, low, strict=True))),
        )

    def _percent(self, counts: Sequence[int]) -> list[float]:
        return [100 * count / self.images for count in counts]


def curve_chart(runs: Sequence["Evaluated"]) -> str:
    """Certified accuracy of one or several artifacts against the radius."""
    radii = [255 * run.evaluation.radii for run in runs]
    end = max(1.0, *(float(values.max()) for values in radii))
    first = runs[0].summary
    marks = [(e["radius_255"], 100 * e["accuracy"]) for e in first["certified"]]
    marks = [(radius, percent) for radius, percent in marks if radius <= end]
    dots = marks if len(runs) == 1 else []
    lines = [Line(_curve(values, end), marks=dots) for values in radii]
    points = ", ".join(
        f"{share(entry['images'], first['images'])} at {entry['exactly']}"
        for entry in first["certified"]
        if entry["radius_255"] <= end
    )
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
    error = upper(100 * Fraction(run.summary["calibration"]["expected_error"]), 1)
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


def corruption_chart(found: dict[str, Any]) -> str:
    """Right and certified answers by severity, all corruptions together; see `write_corruptions`.

    Args:
        found: the field `corruptions` of a summary.
    """
    points = [found["rows"][0], *found["all_by_severity"]]
    names = ["right", *(f"certified at {entry['exactly']}" for entry in points[0]["certified"])]
    series = [
        [(p["severity"], 100 * p["accuracy"]) for p in points],
        *(
            [(p["severity"], 100 * p["certified"][index]["accuracy"]) for p in points]
            for index in range(len(names) - 1)
        ),
    ]
    lines = [Line(one, is_step=False, marks=one) for one in series[:SERIES]]
    description = (
        "A line for right answers and one for each radius, from images as they are, severity 0, to "
        f"severity {points[-1]['severity']}: {share(points[0]['correct'], points[0]['images'])} "
        f"right without corruption, {share(points[-1]['correct'], points[-1]['images'])} at the "
        "end."
    )
    axes = Axis("severity", points[-1]["severity"]), Axis("answers, %", 100)
    title = "Right and certified by severity"
    return Chart("corruption", title, description, *axes, names[:SERIES]).lines(lines)


def sandwich_chart(sandwich: SandwichChart) -> str:
    """Certified accuracy below, accuracy under attack above."""
    description = (
        "Two falling lines of steps through the radii that were asked for: between them accuracy "
        "under attack is at most, certified accuracy at least what is drawn."
    )
    if sandwich.is_between:
        description += " The true accuracy against changes of each size lies between the lines."
    end = max(1.0, *sandwich.radii_255)
    axes = Axis(RADIUS.replace("radius", "change"), end), Axis("right, %", 100)
    names = ["under attack, at most", "certified, at least"]
    chart = Chart("sandwich", "Certified and attacked", description, *axes, names)
    return chart.lines(sandwich.known())
