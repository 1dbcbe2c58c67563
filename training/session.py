"""From a request for a training run to a Trainer that is ready to go."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lipdeploy.errors import DatasetError, UsageError
from lipdeploy.training.checkpoint import read_tensors
from lipdeploy.training.data import CIFAR_NAMES, Dataset, Progress, load_cifar, load_folder
from lipdeploy.training.lipconvnet import Architecture
from lipdeploy.training.loop import CHECKPOINT_FORMAT, Trainer, TrainingOptions


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


def prepare(request: TrainingRequest, *, resume: bool, progress: Progress) -> Trainer:
    """Load the data and build the run, or go back to its checkpoint.

    Raises:
        LipdeployError: if the data, the options or the checkpoint are not usable.
    """
    held = [name for name in ("checkpoint.pt", "model.pt") if (request.out / name).exists()]
    if held and not resume:
        raise UsageError(
            f"{request.out} already holds {held[0]}; add --resume to go on with that run, or "
            "choose another --out"
        )
    options = TrainingOptions(**request.options, device=_device(request.device))
    Architecture(image_size=request.image_size or 32, classes=2, **request.network)
    image_size, command = request.image_size, request.command
    if resume:
        saved = read_tensors(request.out / "checkpoint.pt", CHECKPOINT_FORMAT)
        options = TrainingOptions(**{**saved["options"], "device": options.device})
        image_size, command = saved["architecture"]["image_size"], saved["command"]
    dataset = load_dataset(request, image_size, progress)
    side = dataset.images.pixels.shape[-1]
    architecture = Architecture(image_size=side, classes=len(dataset.classes), **request.network)
    if resume:
        architecture = Architecture(**saved["architecture"])
    trainer = Trainer(dataset, architecture, options, request.out, command)
    if resume:
        trainer.resume(saved)
    return trainer


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_dataset(request: TrainingRequest, image_size: int | None, progress: Progress) -> Dataset:
    """Load the training part that the request names.

    Raises:
        DatasetError: if it is neither CIFAR nor a folder.
    """
    if request.dataset in CIFAR_NAMES:
        if image_size not in (None, 32):
            raise DatasetError(f"{request.dataset} has images of 32 pixels; leave out --image-size")
        return load_cifar(request.dataset, request.data)
    root = Path(request.dataset)
    if not root.is_dir():
        known = ", ".join(CIFAR_NAMES)
        raise DatasetError(f"{root}: neither a folder nor one of {known}")
    workers = request.workers or os.cpu_count() or 1
    return load_folder(root, image_size, workers, progress)
