"""Progress of a training run."""

import math
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import TaskID

from lipdeploy.report.console import is_quiet, print_line, progress_bars

if TYPE_CHECKING:
    from lipdeploy.training.metrics import EpochMetrics


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
            )
