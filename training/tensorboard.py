"""TensorBoard: a run's metrics as event files."""

import math
from pathlib import Path
from types import TracebackType
from typing import Self

from lipdeploy.errors import TrainingError
from lipdeploy.training.metrics import CERTIFIED_COLUMNS, EpochMetrics

FOLDER_NAME = "tensorboard"

TAGS = {
    "loss": "loss/training",
    "validation_loss": "loss/validation",
    "accuracy": "accuracy/training",
    "validation_accuracy": "accuracy/validation",
    **{name: f"certified/{radius}" for name, radius in CERTIFIED_COLUMNS.items()},
    "learning_rate": "learning rate",
    "seconds": "seconds an epoch",
}
"""What each column of the metrics is called there."""


class TensorBoard:
    """An observer that writes into a folder of the run.

    Args:
        folder: of the run; event files go into its folder "tensorboard".
        finished_epochs: of a resumed run; what was written of later ones is no longer shown.

    Raises:
        TrainingError: if tensorboard is missing.
    """

    def __init__(self, folder: Path, finished_epochs: int) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        purged = finished_epochs + 1 if finished_epochs else None
        self._writer = SummaryWriter(str(folder / FOLDER_NAME), purge_step=purged)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        """Nothing: the metrics of epochs are what is compared."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """Write what was measured, at its epoch."""
        for name, tag in TAGS.items():
            value = getattr(metrics, name)
            if not math.isnan(value):
                self._writer.add_scalar(tag, value, metrics.epoch)
        self._writer.flush()


def check_tensorboard() -> None:
    """Raise TrainingError where tensorboard is missing, before a run that wants it."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise TrainingError(
            "--tensorboard needs tensorboard; pip install 'lipdeploy[tensorboard]', or leave out "
            "--tensorboard"
        ) from error
