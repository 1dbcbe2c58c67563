"""The state of a run between two epochs, as checkpoint.pt holds it."""

from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lipdeploy.errors import TrainingError
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.checkpoint import check_weights_fit
from lipdeploy.training.data import Dataset
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.tensor_file import (
    FORMAT_VERSION,
    DamagedFileError,
    TensorFile,
    one_line,
    write_tensors,
)

CHECKPOINT_FORMAT = "lipdeploy-checkpoint"


@dataclass(frozen=True)
class RunState:
    """Everything that a run needs to go on.

    Attributes:
        architecture: the shapes of the network.
        options: how it is trained.
        classes: names of the classes.
        data_sha256: hash of the pixels and labels that it is trained on.
        command: the command that began it.
        finished_epochs: epochs that are done.
        network: weights and buffers.
        optimizer: its state.
        scheduler: its state.
        average: state of averaged weights; empty without them.
        best: the best epoch so far and its weights; empty where the last one is kept.
    """

    architecture: Architecture
    options: TrainingOptions
    classes: tuple[str, ...]
    data_sha256: str
    command: str
    finished_epochs: int
    network: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    average: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path, *, previous: Path | None) -> None:
        """Write it atomically; the file that was there is kept as `previous`.

        Raises:
            OutputError: if it cannot be written.
        """
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {"architecture": asdict(self.architecture), "options": asdict(self.options)}
        values["classes"] = list(self.classes)
        header = {"format": CHECKPOINT_FORMAT, "format_version": FORMAT_VERSION}
        write_tensors({**header, **values}, path, previous=previous)

    @classmethod
    def of(cls, file: TensorFile) -> "RunState":
        """The state in a file that was read.

        Raises:
            DamagedFileError: if something is missing or of another type.
        """
        try:
            # What older versions did not have has a default.
            names = [f.name for f in fields(cls) if f.default_factory is MISSING]
            names += [f.name for f in fields(cls) if f.name in file.content]
            values = {name: file.content[name] for name in names}
            values["architecture"] = Architecture(**values["architecture"])
            values["options"] = TrainingOptions(**values["options"])
            values["classes"] = tuple(values["classes"])
            state = cls(**values)
            state._check_types()
        except MemoryError:
            raise
        # What is in the file decides which exception it is.
        except Exception as error:
            raise DamagedFileError(
                f"{file.path}: damaged checkpoint ({one_line(error)}); start the run anew"
            ) from error
        return state

    def check_fits(self, architecture: Architecture, dataset: Dataset, path: Path) -> None:
        """Make sure that it is a state of this network and of these images.

        Args:
            architecture: of the network that is to go on.
            dataset: on which.
            path: file of the state, for the message.

        Raises:
            TrainingError: if not.
        """
        what = ""
        if self.architecture != architecture:
            what = f"other network: {self.architecture}, now {architecture}"
        elif self.classes != dataset.classes:
            what = f"other classes: {self.classes}, now {dataset.classes}"
        elif self.data_sha256 != dataset.images.sha256:
            what = "other images"
        if what:
            raise TrainingError(
                f"{path} was made with {what}; resume with the data of the first call, or train "
                "anew with another --out"
            )

    def _check_types(self) -> None:
        texts = [*self.classes, self.data_sha256, self.command]
        parts = [self.network, self.optimizer, self.scheduler, self.average, self.best]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("classes, hash and command must be text")
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("states must be dictionaries")
        epochs: Any = self.finished_epochs
        if not isinstance(epochs, int) or epochs < 0:
            raise ValueError(f"{epochs!r} epochs")
        check_weights_fit(self.architecture, self.network)
