"""What `lipdeploy check-pair` says."""

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lipdeploy.decimals import lower
from lipdeploy.report.console import print_error, print_line, print_note
from lipdeploy.report.prediction import guarantee_lines

if TYPE_CHECKING:
    from lipdeploy.pairs import Pair
    from lipdeploy.predictor import Predictor


def pair_summary(pair: "Pair", predictor: "Predictor") -> dict[str, Any]:
    """Everything in plain values."""
    certificate = pair.first.certificate
    return {
        "first": pair.first.path,
        "second": pair.second.path,
        "labels": [pair.first.label, pair.second.label],
        "radius_255": getattr(certificate, "radius_255", None),
        "distance_255": pair.distance_255,
        "reason": getattr(certificate, "reason", None),
        "covered": pair.is_covered,
        "integer_budget": getattr(certificate, "integer_budget", None),
        "squared_file_distance": pair.squared_file_distance,
        "covered_in_file": pair.is_covered_in_file,
        "contradicts": pair.contradicts,
        "guarantee": predictor.guarantee,
        "assumptions": list(predictor.assumptions),
        "model": predictor.model,
        "engine": predictor.runtime.description,
    }


def write_pair(summary: dict[str, Any]) -> None:
    """The same for people."""
    radius = Fraction(summary["radius_255"])
    certified = f"certified radius {lower(radius, 2)}/255" if radius else "not certified"
    covered = "covered" if summary["covered"] else "not covered"
    first, second = summary["labels"]
    print_line(
        f"{summary['first']}: {first}, {certified}",
        f"{summary['second']}: {second}, at distance {summary['distance_255']:.2f}/255: {covered}",
    )
    if summary["reason"]:
        print_note(f"not certified: {summary['reason']}")
    if summary["squared_file_distance"] is None:
        print_note(
            "no distance in the files' pixels: the images differ in size, or are not 8-bit RGB"
        )
    elif summary["integer_budget"] >= 0:
        size = "within" if summary["covered_in_file"] else "beyond"
        print_note(
            f"in the files' pixels: squared differences add up to "
            f"{summary['squared_file_distance']}, {size} the budget of {summary['integer_budget']} "
            "(being beyond decides nothing: the distance at the network's input does)"
        )
    if summary["contradicts"]:
        print_error("the answers contradict the guarantee; please report it with both images")
    print_note(*guarantee_lines(summary["guarantee"], summary["assumptions"]))
