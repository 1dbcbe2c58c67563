"""What a person sees: Rich lines, tables and progress; JSON and CSV for programs."""

import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lipdeploy.exporters.export import Exported
    from lipdeploy.predictor import Failure, Prediction, Predictor
    from lipdeploy.training.loop import EpochMetrics

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_line(text: str) -> None:
    """Print text as it is on standard output, without markup or wrapping."""
    out.print(text, markup=False, soft_wrap=True)


def print_note(text: str) -> None:
    """Print a remark on standard error."""
    err.print(text, markup=False, soft_wrap=True, style="dim")


def print_error(text: str) -> None:
    """Print one red line on standard error."""
    err.print(f"Error: {text}", markup=False, soft_wrap=True, style="red")


class TrainingProgress:
    """Progress bars of decoding and training, one line an epoch."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=out,
        )
        self._decoding: TaskID | None = None
        self._training: TaskID | None = None
        self._epochs = self._steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the bars."""
        self._bars.stop()

    def decoded(self, done: int, total: int) -> None:
        """Show how many images are decoded."""
        if self._decoding is None:
            self._bars.start()
            self._decoding = self._bars.add_task("decoding", total=total, note="")
        self._bars.update(self._decoding, completed=done, visible=done < total)

    def start(self, epochs: int, steps: int, finished_epochs: int) -> None:
        """Begin the bar of the whole run."""
        self._bars.start()
        self._epochs, self._steps = epochs, steps
        self._training = self._bars.add_task(
            "training", total=epochs * steps, completed=finished_epochs * steps, note=""
        )

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        """Show the state within an epoch."""
        if self._training is not None:
            self._bars.update(
                self._training,
                completed=(epoch - 1) * steps + step,
                description=f"epoch {epoch}/{self._epochs}",
                note=f"loss {loss:.3f}  accuracy {accuracy:.1%}",
            )

    def epoch(self, metrics: "EpochMetrics") -> None:
        """Print the line of a finished epoch."""
        self._bars.console.print(
            f"epoch {metrics.epoch:3d}/{self._epochs}  {metrics.seconds:6.1f} s  "
            f"loss {metrics.loss:.3f}  accuracy {metrics.accuracy:.1%}  "
            f"validation {metrics.validation_accuracy:.1%}",
            highlight=False,
        )


UNLIMITED = 10_000

CERTIFICATE_KEYS = (
    "radius",
    "radius_255",
    "radius_file",
    "integer_budget",
    "guarantee",
    "assumptions",
)


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
        from lipdeploy.predictor import Failure

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
            "model": str(self._predictor.model),
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
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def write_csv(rows: Iterable[dict[str, Any]]) -> None:
    """A header and one line an image; lists are JSON."""
    columns = ["path", "label", "class_index", "logits", *CERTIFICATE_KEYS]
    columns += ["space", "model", "engine", "reason", "abstained", "error"]
    writer = csv.DictWriter(sys.stdout, columns)
    writer.writeheader()
    for row in rows:
        lists = {key: json.dumps(v) for key, v in row.items() if isinstance(v, list | tuple)}
        writer.writerow(row | lists)


def write_table(rows: Iterable[dict[str, Any]], *, certify: bool) -> None:
    """A table for people, radii in units of 1/255."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", overflow="fold", no_wrap=not out.is_terminal)
    table.add_column("class")
    if certify:
        table.add_column("certified radius", justify="right")
        table.add_column("in the file", justify="right")
        table.add_column("budget", justify="right")
    for row in rows:
        table.add_row(*_cells(row, certify=certify))
    # Where nobody looks at a screen, lines are as long as they must be.
    screen = out if out.is_terminal else Console(width=UNLIMITED, highlight=False)
    screen.print(table)


def _cells(row: dict[str, Any], *, certify: bool) -> list[str | Text]:
    if "error" in row:
        return [row["path"], Text(row["error"], style="red")]
    label = Text("abstained", style="yellow") if row.get("abstained") else Text(row["label"])
    if not certify:
        return [row["path"], label]
    on_file, budget = row["radius_file"], row["integer_budget"]
    return [
        row["path"],
        label,
        _radius(Fraction(row["radius_255"])),
        Text("-") if on_file is None else _radius(Fraction(on_file) * 255),
        Text("-" if budget is None or budget < 0 else str(budget)),
    ]


def _radius(radius_255: Fraction) -> Text:
    """Rounded down to two decimals, so that what is shown is still guaranteed."""
    if radius_255 <= 0:
        return Text("not certified", style="yellow")
    return Text(f"{math.floor(radius_255 * 100) / 100:.2f}/255", style="green")


def prediction_note(predictor: "Predictor", rows: PredictionRows) -> str:
    """The line under the table: what ran, and what a radius means."""
    counts = "1 image" if rows.total == 1 else f"{rows.total} images"
    if rows.failures:
        counts += f", {rows.failures} unreadable"
    engine = f"{counts}; engine {predictor.runtime.description}"
    if not predictor.certify:
        return engine
    return (
        f"{engine}\nguarantee {predictor.guarantee}: no change of the network's input of l2 norm "
        f"below the radius changes the class; assumes {'; '.join(predictor.assumptions)}"
    )


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """A spinner with the name of the running stage."""
    with err.status("load") as status:
        yield status.update


def export_summary(exported: "Exported") -> None:
    """Size, time, bound, parity, and what to type next."""
    manifest, parity = exported.manifest, exported.parity
    forms = [layer.form for layer in manifest.layers]
    counts = ", ".join(f"{forms.count(form)} {form}" for form in dict.fromkeys(forms))
    shown_bound = math.ceil(Fraction(manifest.lipschitz_upper) * 255 * 10**6) / 10**6
    total = sum(exported.seconds.values())
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in exported.seconds.items())
    size = exported.path.stat().st_size / 1e6
    print_line(f"Exported {exported.path} ({size:.1f} MB) in {total:.1f} s ({times})")
    print_line(f"  layers     {len(forms)}: {counts}")
    print_line(
        f"  bound      a pixel change of l2 norm 1 in [0, 1] moves the features by at most "
        f"{shown_bound:.6f} (pixels are scaled by {manifest.source['input_gain']:g} on the way "
        f"in); proof: {manifest.proof}"
    )
    print_line(
        f"  check      {parity.inputs} inputs against float64: largest logit difference "
        f"{parity.logit_difference:.1e}, costs {parity.radius_cost:.1e}/255 of radius, "
        f"{parity.argmax_flips} argmax flips"
    )
    print_line(f"Next:\n  lipdeploy predict IMAGE --certify --model {exported.path}")
