"""The folder of a run: which files are in it, who may write them, and in which order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lipdeploy.errors import ModelError, TrainingError
from lipdeploy.files import (
    file_sha256,
    make_writable_folder,
    only_writer,
    remove_partial_files,
)
from lipdeploy.training.checkpoint import TrainedModel, load_model, save_model
from lipdeploy.training.metrics import MetricsTable
from lipdeploy.training.run_state import CHECKPOINT_FORMAT, RunState
from lipdeploy.training.tensor_file import DamagedFileError, read_tensors

Note = Callable[[str], None]

CHECKPOINT_NAME = "checkpoint.pt"
PREVIOUS_NAME = "checkpoint.previous.pt"
MODEL_NAME = "model.pt"
METRICS_NAME = "metrics.csv"
RUN_FILES = (CHECKPOINT_NAME, PREVIOUS_NAME, MODEL_NAME, METRICS_NAME)


@dataclass(frozen=True)
class Resumed:
    """The state that a run goes on from.

    Attributes:
        state: what its checkpoint holds.
        is_last: whether that is the last checkpoint, or the one before it.
        seen: hash of checkpoint.pt as it was found; None where it was missing.
    """

    state: RunState
    is_last: bool
    seen: str | None


class RunFolder:
    """A folder with model.pt, checkpoint.pt, the checkpoint before it, and metrics.csv.

    Args:
        path: made when it is opened, if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint_path, self.previous_path = path / CHECKPOINT_NAME, path / PREVIOUS_NAME
        self.model_path = path / MODEL_NAME
        self.metrics = MetricsTable(path / METRICS_NAME)
        self._seen: str | None = None
        self._is_last_checkpoint_whole = True

    def go_on_from(self, *, seen: str | None, is_last: bool) -> None:
        """Expect the folder as it was when the checkpoint was read; arguments as in `Resumed`."""
        self._seen, self._is_last_checkpoint_whole = seen, is_last

    @contextmanager
    def opened(self, finished_epochs: int) -> Iterator[None]:
        """Keep others out, and remove what a run that was killed left half done.

        Raises:
            TrainingError: where another process trained into the folder in the meantime.
            OutputError: if another process is in it, or nothing can be written.
        """
        make_writable_folder(self.path)
        with only_writer(self.path, "training into", "--out"):
            if file_sha256(self.checkpoint_path) != self._seen:
                raise TrainingError(
                    f"{self.checkpoint_path} was written by another process in the meantime; go "
                    "on from there with --resume, or choose another --out"
                )
            remove_partial_files(self.path, RUN_FILES)
            self.metrics.forget_after(finished_epochs)
            yield

    def has_model(self, epoch: int) -> bool:
        """Whether model.pt is whole and not of before `epoch`; people lose and overwrite files."""
        try:
            return load_model(self.model_path).card.epochs >= epoch
        except ModelError:
            return False

    def save_model(self, model: TrainedModel) -> None:
        """Write model.pt atomically; raises OutputError if it cannot be written."""
        save_model(model, self.model_path)

    def save_state(self, state: RunState) -> None:
        """Write checkpoint.pt atomically, keeping the one before; raises as `save_model`."""
        # A damaged checkpoint must not take the place of the good one before it.
        previous = self.previous_path if self._is_last_checkpoint_whole else None
        state.save(self.checkpoint_path, previous=previous)
        self._is_last_checkpoint_whole = True
        self._seen = file_sha256(self.checkpoint_path)


def read_checkpoint(folder: Path, note: Note) -> Resumed:
    """The last checkpoint of a run, or, where it is damaged or missing, the one before it.

    Raises:
        ModelError: if there is none that can be read, or the last one is of another version.
    """
    last, previous = folder / CHECKPOINT_NAME, folder / PREVIOUS_NAME
    if not (last.exists() or previous.exists()):
        others = any((folder / name).exists() for name in RUN_FILES)
        advice = "choose another --out" if others else "start the run"
        raise ModelError(f"{folder}: no checkpoint to go on from; {advice}, without --resume")
    if last.exists():
        try:
            file = read_tensors(last, CHECKPOINT_FORMAT)
            return Resumed(RunState.of(file), is_last=True, seen=file.sha256)
        except DamagedFileError as error:
            if not previous.exists():
                raise
            problem = str(error)
    else:
        problem = f"{last}: missing"
    seen = file_sha256(last)
    state = RunState.of(read_tensors(previous, CHECKPOINT_FORMAT))
    note(f"{problem}; going on from {previous}, epoch {state.finished_epochs}")
    return Resumed(state, is_last=False, seen=seen)
