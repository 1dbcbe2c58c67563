"""metrics.csv: one row an epoch."""

import csv
import io
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lipdeploy.files import not_writable, write_atomically

CERTIFIED_COLUMNS = {"certified_36": 36, "certified_72": 72, "certified_108": 108}
"""Columns of certified accuracy, and their radius in units of 1/255."""


@dataclass(frozen=True)
class EpochMetrics:
    """One row of metrics.csv; NaN for what was not measured.

    Attributes:
        epoch: its number, from 1.
        seconds: time of training and validation.
        learning_rate: after its last step.
        loss: mean over the training images, of the trained weights as they were at each step.
        accuracy: likewise.
        validation_loss: of the weights that model.pt gets, averaged ones with --ema.
        validation_accuracy: likewise.
        certified_36: share of validation images that are right and certified at 36/255, through the
            frozen network in float64.
        certified_72: likewise at 72/255.
        certified_108: likewise at 108/255.
    """

    epoch: int
    seconds: float
    learning_rate: float
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    certified_36: float = math.nan
    certified_72: float = math.nan
    certified_108: float = math.nan


class MetricsTable:
    """The rows of a run, in a CSV file.

    Args:
        path: the file; made with the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, metrics: EpochMetrics) -> None:
        """Add a row; raises OutputError if it cannot be written."""
        text = io.StringIO(newline="")
        held = self._columns()
        columns = held or [field.name for field in fields(metrics)]
        # A run that an older version began goes on with the columns that it began with.
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        if not held:
            writer.writeheader()
        writer.writerow(asdict(metrics))
        try:
            with self.path.open("a", newline="") as stream:
                stream.write(text.getvalue())
        except OSError as error:
            raise not_writable(self.path, error) from error

    def _columns(self) -> list[str]:
        """The header of the file; empty where there is none."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as stream:
            return next(csv.reader(stream), [])

    def rows(self) -> list[dict[str, float]]:
        """What was measured so far, by column; NaN for what is no number."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as stream:
            return [
                {name: _number(value) for name, value in row.items() if name}
                for row in csv.DictReader(stream)
            ]

    def forget_after(self, epoch: int) -> None:
        """Drop rows that a run wrote just before it was killed, before their checkpoint."""
        if not self.path.is_file():
            return
        rows = self.path.read_bytes().splitlines(keepends=True)[: epoch + 1]
        if epoch:
            write_atomically(b"".join(rows), self.path)
        else:
            self.path.unlink()


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return math.nan
