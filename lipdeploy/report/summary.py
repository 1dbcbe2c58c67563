"""An evaluation in plain values: what `evaluate --json` prints and the report is made of."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lipdeploy.bootstrap import METHOD, share_interval
from lipdeploy.breakdown import (
    by_class,
    calibration,
    calibration_error,
    equal_change_lower,
    mistakes,
    radius_quantiles,
    wrong_and_certified,
)
from lipdeploy.comparison import Difference, paired_differences
from lipdeploy.decimals import float_lower, in_255ths
from lipdeploy.frozen import Linear

if TYPE_CHECKING:
    from lipdeploy.datasets import LabelledSources
    from lipdeploy.evaluation import Evaluation
    from lipdeploy.predictor import Predictor

Summary = dict[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """One artifact on a dataset.

    Attributes:
        evaluation: the outcomes.
        images: what was evaluated, labels in the order of the artifact's classes.
        summary: all of it in plain values.
    """

    evaluation: "Evaluation"
    images: "LabelledSources[Any]"
    summary: Summary

    @property
    def is_contradicted(self) -> bool:
        """Whether an attack or a corruption broke a certificate."""
        found = (self.summary.get(name, {}) for name in ("attack", "corruptions"))
        return any(part.get("broken_certificates") for part in found)


@dataclass(frozen=True)
class Course:
    """How an evaluation went.

    Attributes:
        seconds: that it took.
        resumed: outcomes that were known before.
        data_sha256: hash of the images and their classes; None where nobody needed it.
    """

    seconds: float
    resumed: int = 0
    data_sha256: str | None = None


def evaluation_summary(
    evaluation: "Evaluation",
    predictor: "Predictor",
    data: str,
    radii: Sequence[Fraction],
    course: Course,
) -> Summary:
    """The whole result; radii in [0, 1] pixels, those named `_255` in units of 1/255.

    Args:
        evaluation: of at least one image.
        predictor: that answered.
        data: name of the dataset.
        radii: to count at.
        course: how it went.
    """
    numbers = 3 * predictor.network.image_size**2
    return {
        "model": predictor.model,
        "engine": predictor.runtime.description,
        "sha256": predictor.sha256,
        "content_sha256": predictor.manifest.sha256,
        "data": data,
        "data_sha256": course.data_sha256,
        **_accuracies(evaluation, radii, numbers),
        **_breakdown(evaluation, radii, numbers),
        **_statements(evaluation, predictor),
        "network": _network(predictor),
        "engine_seconds": predictor.engine_seconds,
        "certify_seconds": predictor.certify_seconds,
        "seconds": course.seconds,
        "resumed": course.resumed,
        "images_per_second": (evaluation.images - course.resumed) / course.seconds,
    }


def _accuracies(evaluation: "Evaluation", radii: Sequence[Fraction], numbers: int) -> Summary:
    return {
        "images": evaluation.images,
        "unreadable": evaluation.unreadable,
        "correct": evaluation.correct,
        "clean_accuracy": evaluation.clean_accuracy,
        "clean_interval": share_interval(evaluation.correct, evaluation.images),
        "certified": [_certified(evaluation, radius, numbers) for radius in radii],
        "intervals": METHOD,
        "average_certified_radius": evaluation.average_certified_radius,
        "mean_correct_radius": evaluation.mean_correct_radius,
    }


def _certified(evaluation: "Evaluation", radius: Fraction, numbers: int) -> Summary:
    count = evaluation.certified(radius)
    return {
        **_named_radius(radius),
        "equal_change_255": equal_change_lower(255 * radius, numbers),
        "images": count,
        "accuracy": evaluation.certified_accuracy(radius),
        "interval": share_interval(count, evaluation.images),
        "images_by_statement": evaluation.compared(radius),
    }


def _named_radius(radius: Fraction) -> Summary:
    return {
        "radius": float_lower(radius),
        "radius_255": float_lower(255 * radius),
        "exactly": in_255ths(radius),
    }


def _breakdown(evaluation: "Evaluation", radii: Sequence[Fraction], numbers: int) -> Summary:
    bins = calibration(evaluation)
    return {
        "input_numbers": numbers,
        "classes": [asdict(result) for result in by_class(evaluation, radii)],
        "mistakes": [asdict(mistake) for mistake in mistakes(evaluation)],
        "wrong_and_certified": wrong_and_certified(evaluation),
        "radius_quantiles": [
            {
                "quantile": float(quantile),
                "radius": radius,
                "equal_change_255": equal_change_lower(255 * Fraction(radius), numbers),
            }
            for quantile, radius in radius_quantiles(evaluation)
        ],
        "calibration": {
            "expected_error": calibration_error(bins),
            "bins": [asdict(part) for part in bins],
        },
    }


def _statements(evaluation: "Evaluation", predictor: "Predictor") -> Summary:
    return {
        "cost_255": {
            name: {"mean": mean, "largest": largest}
            for name, (mean, largest) in evaluation.costs().items()
        },
        "guarantee": predictor.guarantee,
        "rounding": predictor.rounding,
        "assumptions": list(predictor.assumptions),
        "assumptions_by_statement": {
            name: list(predictor.assumptions_of(name)) for name in predictor.statements
        },
        "space": "input",
    }


def _network(predictor: "Predictor") -> Summary:
    network, manifest = predictor.network, predictor.manifest
    return {
        "format": predictor.format,
        "image_size": network.image_size,
        "classes": list(manifest.classes),
        "linear_layers": sum(isinstance(layer, Linear) for layer in network.operations),
        "head": network.head.kind,
        "parameters": sum(weights.size for weights in network.weights().values()),
        "lipschitz_upper": manifest.lipschitz_upper,
        "proof": manifest.proof,
        "source": manifest.source,
        "made_with": manifest.versions,
    }


def difference_rows(this: Evaluated, first: Evaluated, radii: Sequence[Fraction]) -> Summary:
    """How an artifact differs from the first one, on the same images."""
    found = paired_differences(this.evaluation, first.evaluation, radii)
    return {"model": first.summary["model"], "differences": [_difference(d) for d in found]}


def _difference(difference: Difference) -> Summary:
    radius = difference.radius
    name = {"exactly": None} if radius is None else _named_radius(radius)
    rest = asdict(difference)
    del rest["radius"]
    return name | rest
