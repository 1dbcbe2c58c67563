"""From a request for a training run to a Trainer that is ready to go."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lipdeploy.datasets import CIFAR_NAMES, check_test_classes, scan_folder, unknown_dataset
from lipdeploy.errors import ModelError, UsageError
from lipdeploy.files import file_sha256, make_writable_folder
from lipdeploy.training.data import Dataset, Progress, load_cifar, load_folder
from lipdeploy.training.lipconvnet import Architecture
from lipdeploy.training.loop import CHECKPOINT_NAME, PREVIOUS_NAME, RUN_FILES, Trainer
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.run_state import CHECKPOINT_FORMAT, RunState
from lipdeploy.training.tensor_file import DamagedFileError, read_tensors

Note = Callable[[str], None]


@dataclass(frozen=True)
class TrainingRequest:
    """What a caller asks for.

    Attributes:
        dataset: "cifar10", "cifar100" or a folder.
        data: where CIFAR is, or goes.
        out: the run's folder.
        image_size: side of the input, or None for that of the data.
        device: "auto", "cpu", "cuda", ...
        workers: decoding processes; 0 for one a core.
        network: fields of `Architecture`, without image size and classes.
        options: fields of `TrainingOptions`, without device.
        command: the command line, kept in the model.
        changes: of a resumed run, the options that replace those of its checkpoint.
    """

    dataset: str
    data: Path
    out: Path
    image_size: int | None
    device: str
    workers: int
    network: dict[str, Any]
    options: dict[str, Any]
    command: str
    changes: dict[str, Any] = field(default_factory=dict)


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


def prepare(request: TrainingRequest, *, resume: bool, progress: Progress, note: Note) -> Trainer:
    """Load the data and build the run, or go back to its checkpoint.

    Args:
        request: what to do.
        resume: whether to go back.
        progress: called with the number of images decoded and in all.
        note: called with what the user should know.

    Raises:
        LipdeployError: if the data, the options or the checkpoint are not usable.
    """
    held = [name for name in RUN_FILES if (request.out / name).exists()]
    if held and not resume:
        can_resume = {CHECKPOINT_NAME, PREVIOUS_NAME} & set(held)
        advice = "add --resume to go on with that run, or choose" if can_resume else "choose"
        raise UsageError(f"{request.out} already holds {held[0]}; {advice} another --out")
    if request.workers < 0:
        raise UsageError(f"--workers {request.workers}: must be 0 (one a core) or more")
    options = TrainingOptions(**request.options, device=chosen_device(request.device))
    Architecture(image_size=request.image_size or 32, classes=2, **request.network)
    image_size, resumed = request.image_size, None
    if resume:
        resumed = read_checkpoint(request.out, note)
        options = replace(resumed.state.options, device=options.device, **request.changes)
        image_size = resumed.state.architecture.image_size
    check_dataset(request, image_size)
    is_new = not request.out.exists()
    make_writable_folder(request.out)
    try:
        return _build(request, options, image_size, progress, resumed)
    except BaseException:
        if is_new:
            with suppress(OSError):
                request.out.rmdir()
        raise


def _build(
    request: TrainingRequest,
    options: TrainingOptions,
    image_size: int | None,
    progress: Progress,
    resumed: Resumed | None,
) -> Trainer:
    dataset = load_dataset(request, image_size, progress)
    if resumed is not None:
        state = resumed.state
        trainer = Trainer(dataset, state.architecture, options, request.out, state.command)
        trainer.resume(state, seen=resumed.seen, is_last=resumed.is_last)
        return trainer
    side = dataset.images.pixels.shape[-1]
    architecture = Architecture(image_size=side, classes=len(dataset.classes), **request.network)
    return Trainer(dataset, architecture, options, request.out, request.command)


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


def chosen_device(name: str) -> str:
    """The device that a name stands for."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_dataset(request: TrainingRequest, image_size: int | None) -> None:
    """Find out what is wrong with a dataset before anything is written or decoded."""
    root = Path(request.dataset)
    if request.dataset in CIFAR_NAMES:
        if image_size not in (None, 32):
            raise UsageError(f"{request.dataset} has images of 32 pixels; leave out --image-size")
    elif not root.is_dir():
        raise unknown_dataset(request.dataset)
    else:
        check_test_classes(root, scan_folder(root, "train").classes)


def load_dataset(request: TrainingRequest, image_size: int | None, progress: Progress) -> Dataset:
    """Load the training part that the request names.

    Raises:
        DatasetError: if it cannot be had, or an image in it cannot be read.
    """
    if request.dataset in CIFAR_NAMES:
        return load_cifar(request.dataset, request.data)
    workers = request.workers or os.cpu_count() or 1
    return load_folder(Path(request.dataset), image_size, workers, progress)
