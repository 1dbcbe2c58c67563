"""Datasets: image folders, decoded in parallel and cached, or streamed; CIFAR."""

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdeploy.datasets import LabelledSources, scan_folder
from lipdeploy.errors import DatasetError, ImageError, OutputError
from lipdeploy.files import cache_folder
from lipdeploy.images import decode
from lipdeploy.training.decoding import decode_lists

Progress = Callable[[int, int], None]
Batches = Generator[tuple[Tensor, Tensor], None, None]
"""Pixels and labels; to be closed by whoever does not read to the end."""

CHUNK = 512
"""Files that one task of a decoding process holds."""
DEFAULT_LARGEST_SIDE = 64
"""Larger photographs are reduced to this unless a size is asked for."""


class Images(Protocol):
    """Images of one size with their labels, wherever they are."""

    @property
    def labels(self) -> Tensor:
        """Class indices, shape (count,), int64."""

    @property
    def side(self) -> int:
        """Height and width of the images."""

    @property
    def sha256(self) -> str:
        """Hash of the images and labels, by which a resumed run knows them."""

    def __len__(self) -> int:
        """Number of images."""

    def select(self, indices: Tensor) -> Self:
        """The images at `indices`, in that order."""

    def to(self, device: torch.device) -> Self:
        """The same images, on a device or to be read onto it."""

    def loaded(self) -> "LabelledImages":
        """All of them in memory."""

    def read(self, wanted: Iterable[Tensor]) -> Batches:
        """Float pixels (count, 3, side, side) and labels of each list of indices, in turn."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of one size with their labels.

    Attributes:
        pixels: shape (count, 3, size, size), 0 ... 255; uint8, or float16 where they were resized.
        labels: class indices, shape (count,), int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def side(self) -> int:
        """Height and width of the images."""
        return self.pixels.shape[-1]

    @cached_property
    def sha256(self) -> str:
        """Hash of pixels and labels."""
        digest = hashlib.sha256(f"{self.pixels.dtype} {tuple(self.pixels.shape)}".encode())
        for tensor in (self.pixels, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def select(self, indices: Tensor) -> "LabelledImages":
        """The images at `indices`, in that order."""
        return LabelledImages(self.pixels[indices], self.labels[indices])

    def to(self, device: torch.device) -> "LabelledImages":
        """Move to a device."""
        return LabelledImages(self.pixels.to(device), self.labels.to(device))

    def loaded(self) -> "LabelledImages":
        """These images."""
        return self

    def read(self, wanted: Iterable[Tensor]) -> Batches:
        """Float pixels (count, 3, side, side) and labels of each list of indices, in turn."""
        for indices in wanted:
            chosen = self.select(indices.to(self.labels.device))
            yield chosen.pixels.float(), chosen.labels


@dataclass(frozen=True)
class Dataset:
    """The training part of a dataset; the test part is never read while training."""

    name: str
    classes: tuple[str, ...]
    images: Images


def decode_files(
    files: Sequence[Path], size: int, workers: int, progress: Progress
) -> NDArray[Any]:
    """Decode and resize files; shape (len(files), 3, size, size).

    In other processes where there is more than one worker and enough to do: starting one takes as
    long as decoding some thousand small images.
    """
    chunks = [files[i : i + CHUNK] for i in range(0, len(files), CHUNK)]
    parts: list[NDArray[Any]] = []
    with closing(decode_lists(chunks, size, min(workers, len(chunks)))) as decoded:
        for part in decoded:
            parts.append(part)
            progress(sum(map(len, parts)), len(files))
    return np.concatenate(parts)


def _fingerprint(files: Sequence[Path], size: int) -> str:
    digest = hashlib.sha256(f"2 {size}".encode())
    for path in files:
        status = path.stat()
        digest.update(f"{path.absolute()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def load_folder(
    root: Path, size: int | None, workers: int, progress: Progress, part: str = "train"
) -> Dataset:
    """Load `root`/`part`/<class>/*, from the cache where the files have not changed since.

    Args:
        root: the dataset's folder.
        size: side of the images after resize and crop; by default the shorter side of the first
            image, but at most `DEFAULT_LARGEST_SIDE`.
        workers: decoding processes.
        progress: called with the number of images done and in all.
        part: "train" or "test".

    Raises:
        DatasetError: if the layout is wrong or an image cannot be read.
    """
    folder = scan_folder(root, part)
    files = folder.sources
    size = size or natural_size(files)
    cached = cache_folder() / f"{_fingerprint(files, size)}.npy"
    pixels = _read_cache(cached, (len(files), 3, size, size))
    if pixels is None:
        pixels = decode_files(files, size, workers, progress)
        _write_cache(cached, pixels)
    images = LabelledImages(torch.from_numpy(pixels), torch.tensor(folder.labels))
    return Dataset(root.name, folder.classes, images)


def _read_cache(path: Path, shape: tuple[int, ...]) -> NDArray[Any] | None:
    try:
        pixels = np.load(path)
    except (OSError, ValueError, EOFError):  # not there, or damaged: decode again
        return None
    return pixels if pixels.shape == shape else None


def _write_cache(path: Path, pixels: NDArray[Any]) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                np.save(stream, pixels)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: the decoded images cannot be kept ({error.strerror}); make room, or set "
            "XDG_CACHE_HOME to another folder"
        ) from error


def natural_size(files: Sequence[Path]) -> int:
    """The first image's shorter side, at most `DEFAULT_LARGEST_SIDE`.

    Raises:
        DatasetError: if that image cannot be read.
    """
    return min(*image_shape(files[0]), DEFAULT_LARGEST_SIDE)


def image_shape(path: Path) -> tuple[int, int]:
    """Height and width of an image file; raises DatasetError if it cannot be read."""
    try:
        height, width, _ = decode(path).pixels.shape
    except ImageError as error:
        raise DatasetError(f"{path}: {error}; remove or replace the image") from error
    return height, width


def load_cifar(name: str, root: Path) -> Dataset:
    """Load the training part of CIFAR-10 or CIFAR-100, downloading it into `root`.

    Raises:
        DatasetError: if torchvision is missing or does not fit the installed torch.
    """
    source = _torchvision_cifar(name, root, train=True)
    pixels = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    images = LabelledImages(pixels, torch.tensor(source.targets))
    return Dataset(name, tuple(source.classes), images)


def cifar_test_images(name: str, root: Path) -> LabelledSources[NDArray[np.uint8]]:
    """The test part of CIFAR-10 or CIFAR-100, for evaluation only; raises as `load_cifar`."""
    source = _torchvision_cifar(name, root, train=False)
    # A list of images: as one array they would be taken for a single one.
    return LabelledSources(f"{name} test", tuple(source.classes), list(source.data), source.targets)


def _torchvision_cifar(name: str, root: Path, *, train: bool) -> Any:  # noqa: ANN401
    try:
        from torchvision.datasets import CIFAR10, CIFAR100
    except (ImportError, RuntimeError) as error:
        raise DatasetError(
            f"{name} needs a torchvision that fits the installed torch ({error}); "
            "install lipdeploy[cifar], or give a folder with train/<class>/* images"
        ) from error
    kind = CIFAR10 if name == "cifar10" else CIFAR100
    try:
        return kind(str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"{name} cannot be downloaded into {root} ({error}); try again, or give --data the "
            "folder that already holds it"
        ) from error
