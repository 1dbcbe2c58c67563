"""From a request for a training run to a Trainer that is ready to go."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lipdeploy.datasets import CIFAR_NAMES, check_test_classes, scan_folder, unknown_dataset
from lipdeploy.errors import ModelError, UsageError
from lipdeploy.files import make_writable_folder, write_atomically
from lipdeploy.training.checkpoint import read_tensors
from lipdeploy.training.data import Dataset, Progress, load_cifar, load_folder
from lipdeploy.training.lipconvnet import Architecture
from lipdeploy.training.loop import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_NAME,
    PREVIOUS_NAME,
    Trainer,
    TrainingOptions,
)

RUN_FILES = (CHECKPOINT_NAME, PREVIOUS_NAME, "model.pt")
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
        raise UsageError(
            f"{request.out} already holds {held[0]}; add --resume to go on with that run, or "
            "choose another --out"
        )
    options = TrainingOptions(**request.options, device=_device(request.device))
    Architecture(image_size=request.image_size or 32, classes=2, **request.network)
    image_size, command = request.image_size, request.command
    if resume:
        saved = read_checkpoint(request.out, note)
        kept = {**saved["options"], "device": options.device, **request.changes}
        options = TrainingOptions(**kept)
        image_size, command = saved["architecture"]["image_size"], saved["command"]
    _check_dataset(request, image_size)
    make_writable_folder(request.out)
    dataset = load_dataset(request, image_size, progress)
    side = dataset.images.pixels.shape[-1]
    architecture = Architecture(image_size=side, classes=len(dataset.classes), **request.network)
    if resume:
        architecture = Architecture(**saved["architecture"])
    trainer = Trainer(dataset, architecture, options, request.out, command)
    if resume:
        trainer.resume(saved)
    return trainer


def read_checkpoint(folder: Path, note: Note) -> dict[str, Any]:
    """The last checkpoint of a run, or, where it is damaged, the one before it.

    Raises:
        ModelError: if neither can be read.
    """
    last, previous = folder / CHECKPOINT_NAME, folder / PREVIOUS_NAME
    try:
        return read_tensors(last, CHECKPOINT_FORMAT)
    except ModelError as error:
        if not previous.is_file():
            raise
        state = read_tensors(previous, CHECKPOINT_FORMAT)
        note(f"{error}\nGoing on from {previous}, epoch {state['finished_epochs']}")
        # Else the next save would keep the damaged file as the previous one.
        write_atomically(previous.read_bytes(), last)
        return state


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_dataset(request: TrainingRequest, image_size: int | None) -> None:
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
