"""metrics.csv: one row an epoch."""

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lipdeploy.files import not_writable, write_atomically


@dataclass(frozen=True)
class EpochMetrics:
    """One row of metrics.csv."""

    epoch: int
    seconds: float
    learning_rate: float
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float


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
        writer = csv.DictWriter(text, [field.name for field in fields(metrics)])
        if not self.path.is_file():
            writer.writeheader()
        writer.writerow(asdict(metrics))
        try:
            with self.path.open("a", newline="") as stream:
                stream.write(text.getvalue())
        except OSError as error:
            raise not_writable(self.path, error) from error

    def forget_after(self, epoch: int) -> None:
        """Drop rows that a run wrote just before it was killed, before their checkpoint."""
        if not self.path.is_file():
            return
        rows = self.path.read_bytes().splitlines(keepends=True)[: epoch + 1]
        if epoch:
            write_atomically(b"".join(rows), self.path)
        else:
            self.path.unlink()
