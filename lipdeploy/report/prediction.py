"""Predictions as tables, JSON lines and CSV."""

import csv
import json
import sys
from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from lipdeploy.decimals import lower
from lipdeploy.report import console
from lipdeploy.report.console import cell, print_error, print_json, print_table

if TYPE_CHECKING:
    from lipdeploy.prediction import Failure, Prediction
    from lipdeploy.predictor import Predictor

CERTIFICATE_KEYS = (
    "radius",
    "radius_255",
    "radius_file",
    "integer_budget",
    "guarantee",
    "assumptions",
)
FIELDS = {
    "path": "the image as it was given, or found in a directory",
    "label": "name of the class",
    "class_index": "its position among the classes",
    "logits": "what the engine returned, one number a class",
    "radius": "guaranteed l2 radius at the network's input, pixels in [0, 1]; 0 for none",
    "radius_255": "the same in units of 1/255",
    "radius_file": "the radius in the pixels of the file, in [0, 1]; null where the input is not "
    "linear in them",
    "integer_budget": "largest sum of squared differences of 8-bit pixels of the file that is "
    "covered; -1 for none",
    "guarantee": "the statement: program, network or no-certified-flip",
    "assumptions": "what it rests on, a list",
    "space": "where radius is measured: input",
    "model": "the engine file",
    "engine": "what ran it, its version and device",
    "reason": "why the radius is 0; only there",
    "abstained": "whether the radius is below --min-radius; only with this option",
    "error": "why the image could not be read; then only path is beside it",
}
"""What `--json` prints of an image, and the columns of `--csv`, in order."""

MEANINGS = {
    "program": "the engine itself prints the same class for every input of the network nearer than "
    "the radius (l2)",
    "network": "the exact network, computed without rounding, has the same class at every input "
    "nearer than the radius (l2)",
    "no-certified-flip": "no input nearer than the radius (l2) gets another class together with a "
    "positive radius",
}
"""What each guarantee says, for people."""


class PredictionRows:
    """Predictions as plain values with the fixed keys of `predict --json` and `--csv`.

    Args:
        predictor: what made them.
        min_radius: images certified below it count as abstained; None for no such limit.

    Attributes:
        failures: images that could not be read so far.
        abstained: images below `min_radius` so far.
        total: all images so far.
    """

    def __init__(self, predictor: "Predictor", min_radius: float | None) -> None:
        self._predictor, self._min_radius = predictor, min_radius
        self.failures = self.abstained = self.total = 0

    def row(self, result: "Prediction | Failure") -> dict[str, Any]:
        """One image; {"path", "error"} where it could not be read."""
        self.total += 1
        from lipdeploy.prediction import Failure

        if isinstance(result, Failure):
            self.failures += 1
            return {"path": result.path, "error": result.error}
        return self._prediction(result)

    def _prediction(self, prediction: "Prediction") -> dict[str, Any]:
        certificate = prediction.certificate
        row: dict[str, Any] = {
            "path": prediction.path,
            "label": prediction.label,
            "class_index": prediction.class_index,
            "logits": list(prediction.logits),
        }
        row |= {key: getattr(certificate, key, None) for key in CERTIFICATE_KEYS}
        row |= {
            "space": "input" if certificate else None,
            "model": self._predictor.model,
            "engine": self._predictor.runtime.description,
        }
        if certificate and certificate.reason:
            row["reason"] = certificate.reason
        if self._min_radius is not None:
            row["abstained"] = prediction.radius < self._min_radius
            self.abstained += row["abstained"]
        return row


def write_json(rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line on standard output."""
    for row in rows:
        print_json(row)


def write_csv(rows: Iterable[dict[str, Any]]) -> None:
    """A header and one line an image; lists are JSON."""
    writer = csv.DictWriter(sys.stdout, FIELDS)
    writer.writeheader()
    for row in rows:
        lists = {key: json.dumps(v) for key, v in row.items() if isinstance(v, list | tuple)}
        writer.writerow(row | lists)


def write_table(rows: Iterable[dict[str, Any]], *, certify: bool) -> None:
    """A table for people, radii in units of 1/255."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", overflow="fold", no_wrap=not console.out.is_terminal)
    table.add_column("class")
    if certify:
        table.add_column("certified radius", justify="right")
        table.add_column("in the file", justify="right")
        table.add_column("budget", justify="right")
    unreadable = []
    for row in rows:
        table.add_row(*_cells(row, certify=certify))
        unreadable += [row] if "error" in row else []
    print_table(table)
    for row in unreadable:
        print_error(f"{row['path']}: {row['error']}")


def _cells(row: dict[str, Any], *, certify: bool) -> list[Text]:
    path = cell(row["path"])
    if "error" in row:
        return [path, cell("unreadable", "red")]
    label = cell("abstained", "yellow") if row.get("abstained") else cell(row["label"])
    if not certify:
        return [path, label]
    on_file, budget = row["radius_file"], row["integer_budget"]
    return [
        path,
        label,
        shown_radius(Fraction(row["radius_255"])),
        cell("-") if on_file is None else shown_radius(Fraction(on_file) * 255),
        cell("-" if budget is None or budget < 0 else str(budget)),
    ]


def shown_radius(radius_255: Fraction) -> Text:
    """Rounded down to two decimals, so that what is shown is still guaranteed."""
    if radius_255 <= 0:
        return Text("not certified", style="yellow")
    return Text(f"{lower(radius_255, 2)}/255", style="green")


def prediction_note(predictor: "Predictor", rows: PredictionRows) -> list[str]:
    """The lines under the table: what ran, and what a radius means."""
    counts = "1 image" if rows.total == 1 else f"{rows.total} images"
    if rows.failures:
        counts += f", {rows.failures} unreadable"
    engine = f"{counts}; engine {predictor.runtime.description}"
    if not predictor.certify:
        return [engine]
    engine += f", {predictor.engine_seconds:.3f} s; certificates {predictor.certify_seconds:.3f} s"
    if predictor.tight_is_exact:
        engine += "; --tight changes nothing, the radii of this linear head are exact"
    return [engine, *guarantee_lines(predictor.guarantee, predictor.assumptions)]


def guarantee_lines(guarantee: str, assumptions: Iterable[str], *remarks: str) -> list[str]:
    """What a guarantee says, remarks on how it is counted, and what it assumes, one a line."""
    assumed = [f"  - {assumption}" for assumption in assumptions]
    meaning = f"guarantee {guarantee}: {MEANINGS[guarantee]}"
    return [meaning, *remarks, "assumptions:", *assumed]
