"""Progress of a training run, and its curves."""

import math
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import TaskID

from lipdeploy.errors import OutputError
from lipdeploy.plots import write_learning_curves
from lipdeploy.report.console import is_quiet, print_line, print_note, progress_bars

if TYPE_CHECKING:
    from lipdeploy.training.metrics import EpochMetrics, MetricsTable

CURVES_NAME = "curves.png"


class TrainingProgress:
    """Progress bars of decoding and training, one line an epoch."""

    def __init__(self) -> None:
        self._bars = progress_bars()
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
        if not is_quiet():
            held = metrics.validation_accuracy
            validation = "" if math.isnan(held) else f"  validation {held:.1%}"
            print_line(
                f"epoch {metrics.epoch:3d}/{self._epochs}  {metrics.seconds:6.1f} s  "
                f"loss {metrics.loss:.3f}  accuracy {metrics.accuracy:.1%}{validation}"
                f"{_certified(metrics)}"
            )


def _certified(metrics: "EpochMetrics") -> str:
    if math.isnan(metrics.certified_36):
        return ""
    shares = metrics.certified_36, metrics.certified_72, metrics.certified_108
    return "  certified at 36, 72, 108/255 " + ", ".join(f"{share:.1%}" for share in shares)


class LearningCurves:
    """An observer that draws the curves of the whole run when it ends.

    Args:
        table: the metrics of all epochs.
        folder: of the run; gets curves.png.
    """

    def __init__(self, table: "MetricsTable", folder: Path) -> None:
        self._table, self._path = table, folder / CURVES_NAME
        self._is_due = False

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        """Nothing: the curves have a point an epoch."""

    def epoch(self, metrics: "EpochMetrics") -> None:
        """There is something new to draw."""
        self._is_due = True

    def draw(self) -> None:
        """Write curves.png if there was an epoch; where that fails, say so: the model is there."""
        if not self._is_due:
            return
        try:
            write_learning_curves(self._table.rows(), self._path)
        except ImportError:
            print_note(f"No {CURVES_NAME}: that needs matplotlib; pip install 'lipdeploy[plot]'")
        except OutputError as error:
            print_note(f"No {CURVES_NAME}: {error}")
