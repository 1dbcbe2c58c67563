"""From the name of a dataset to its images: in memory, or, where they are too large, streamed."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lipdeploy.datasets import CIFAR_NAMES, LabelledSources, scan_folder
from lipdeploy.memory import free_memory
from lipdeploy.training.data import (
    Dataset,
    Progress,
    image_shape,
    load_cifar,
    load_folder,
    natural_size,
)
from lipdeploy.training.distributed import Processes
from lipdeploy.training.stream import StreamedImages

Note = Callable[[str], None]

LARGEST_SHARE = 0.5
"""Of the free memory: loading and splitting hold the images twice for a moment."""


@dataclass(frozen=True)
class Source:
    """Where images are, and how they are wanted.

    Attributes:
        dataset: "cifar10", "cifar100" or a folder.
        data: where CIFAR is, or goes.
        image_size: side of the images, or None for that of the data.
        workers: decoding processes on this machine; 0 for one a core.
        stream: whether to decode images whenever they are needed; None where that depends on the
            free memory.
    """

    dataset: str
    data: Path
    image_size: int | None
    workers: int
    stream: bool | None


def load_dataset(source: Source, processes: Processes, progress: Progress, note: Note) -> Dataset:
    """Load the training part; of several processes on a machine one decodes or downloads first.

    Args:
        source: what to load.
        processes: who load it.
        progress: called with the number of images decoded and in all.
        note: told where images are streamed without having been asked for.

    Raises:
        DatasetError: if it cannot be had, or an image in it cannot be read.
    """
    if source.dataset in CIFAR_NAMES:
        return processes.one_first(lambda: load_cifar(source.dataset, source.data))
    root, size = Path(source.dataset), source.image_size
    workers = source.workers or os.cpu_count() or 1
    folder = processes.together(lambda: scan_folder(root, "train"))
    asked = source.stream
    if asked or (asked is None and is_too_large(folder, size, processes, note)):
        each = max(1, workers // processes.local_size)
        return processes.together(lambda: stream_folder(root, folder, size, each))
    return processes.one_first(lambda: load_folder(root, size, workers, progress))


def stream_folder(
    root: Path, folder: LabelledSources[Path], size: int | None, workers: int
) -> Dataset:
    """The images of a folder that was scanned, each decoded whenever it is needed.

    Raises:
        DatasetError: if the first image cannot be read; the others are read later.
    """
    side = size or natural_size(folder.sources)
    images = StreamedImages(folder.sources, torch.tensor(folder.labels), side, workers)
    return Dataset(root.name, folder.classes, images)


def is_too_large(
    folder: LabelledSources[Path], size: int | None, processes: Processes, note: Note
) -> bool:
    """Whether a copy for each process of this machine would take too much of the memory.

    Raises:
        DatasetError: if the first image cannot be read.
    """
    free = free_memory()
    needed = processes.together(lambda: decoded_bytes(folder, size)) * processes.local_size
    # One answer for all: machines differ, and what one of them takes changes what is free.
    is_it = processes.any(free is not None and needed > LARGEST_SHARE * free)
    if is_it:
        note(
            f"{len(folder)} images of {needed / 2**30:.1f} GiB are too many for the free memory: "
            "they are decoded while training, as with --stream"
        )
    return is_it


def decoded_bytes(folder: LabelledSources[Path], size: int | None) -> int:
    """Bytes of all images of a folder in memory, if all are like the first.

    Raises:
        DatasetError: if the first image cannot be read.
    """
    shape = image_shape(folder.sources[0])
    side = size or natural_size(folder.sources)
    bytes_each = 1 if shape == (side, side) else 2
    return len(folder) * 3 * side * side * bytes_each
