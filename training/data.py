"""Datasets in memory: image folders and CIFAR, decoded in parallel, cached, split, augmented."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdeploy.datasets import LabelledSources, scan_folder
from lipdeploy.errors import DatasetError, ImageError, OutputError
from lipdeploy.files import cache_folder
from lipdeploy.images import decode
from lipdeploy.resize import linear_resize

Progress = Callable[[int, int], None]
CHUNK = 512
"""Files that one task of a decoding process holds."""
DEFAULT_LARGEST_SIDE = 64
"""Larger photographs are reduced to this unless a size is asked for."""


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


@dataclass(frozen=True)
class Dataset:
    """The training part of a dataset; the test part is never read while training."""

    name: str
    classes: tuple[str, ...]
    images: LabelledImages


def _decode_file(path: Path, size: int) -> NDArray[Any]:
    try:
        pixels = decode(path).pixels
        resized = linear_resize(pixels.shape[0], pixels.shape[1], size)(pixels)
    except ImageError as error:
        raise DatasetError(f"{path!s}: {error}; remove or replace the image") from error
    whole = pixels.shape[:2] == (size, size)
    return resized.astype(np.uint8 if whole else np.float16)


def _decode_chunk(task: tuple[Sequence[Path], int]) -> NDArray[Any]:
    files, size = task
    return np.stack([_decode_file(path, size) for path in files])


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def decode_files(
    files: Sequence[Path], size: int, workers: int, progress: Progress
) -> NDArray[Any]:
    """Decode and resize files; shape (len(files), 3, size, size).

    In other processes where there is more than one worker and enough to do: starting one takes as
    long as decoding some thousand small images.
    """
    chunks = [(files[i : i + CHUNK], size) for i in range(0, len(files), CHUNK)]
    parts: list[NDArray[Any]] = []
    with ExitStack() as stack:
        results: Iterator[NDArray[Any]] = map(_decode_chunk, chunks)
        if min(workers, len(chunks)) > 1:
            pool = ProcessPoolExecutor(
                workers, get_context("spawn"), initializer=_leave_interrupts_to_the_parent
            )
            stack.callback(pool.shutdown, cancel_futures=True)
            results = pool.map(_decode_chunk, chunks)
        for part in results:
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
    if size is None:
        size = min(*image_shape(files[0]), DEFAULT_LARGEST_SIDE)
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


def image_shape(path: Path) -> tuple[int, int]:
    """Height and width of an image file; raises DatasetError if it cannot be read."""
    try:
        height, width, _ = decode(path).pixels.shape
    except ImageError as error:
        raise DatasetError(f"{path}: {error}") from error
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


def split_validation(
    images: LabelledImages, fraction: float, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Set aside `fraction` of every class, at least one image where a class has two or more.

    Returns:
        The part to train on and the part to validate on.
    """
    generator = torch.Generator().manual_seed(seed)
    held: list[Tensor] = []
    for label in images.labels.unique():
        members = torch.nonzero(images.labels == label).flatten()
        order = members[torch.randperm(len(members), generator=generator)]
        count = max(1, round(fraction * len(members))) if fraction and len(members) > 1 else 0
        held.append(order[:count])
    chosen = torch.zeros(len(images), dtype=torch.bool)
    chosen[torch.cat(held)] = True
    return images.select(torch.nonzero(~chosen).flatten()), images.select(
        torch.nonzero(chosen).flatten()
    )


def channel_mean(images: LabelledImages) -> Tensor:
    """Mean of each channel, 0 ... 255, shape (3,)."""
    chunks = images.pixels.split(1024)
    total = sum(chunk.double().mean(dim=(2, 3)).sum(dim=0) for chunk in chunks)
    return (total / len(images)).float() if isinstance(total, Tensor) else torch.zeros(3)


def augment(pixels: Tensor, mean: Tensor, generator: torch.Generator, reach: int) -> Tensor:
    """Shift each image by up to `reach` pixels, filling with the mean, and flip half of them.

    Args:
        pixels: shape (batch, 3, size, size), float.
        mean: fill value of each channel, shape (3,).
        generator: source of randomness, on the CPU.
        reach: largest shift.
    """
    count, channels, size, _ = pixels.shape
    rows = torch.randint(0, 2 * reach + 1, (count, 1), generator=generator) + torch.arange(size)
    columns = torch.randint(0, 2 * reach + 1, (count, 1), generator=generator) + torch.arange(size)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    side = size + 2 * reach
    padded = mean.view(1, 3, 1, 1).expand(count, channels, side, side).clone()
    padded[:, :, reach : reach + size, reach : reach + size] = pixels
    index = (rows.unsqueeze(2) * side + columns.unsqueeze(1)).view(count, 1, -1).to(pixels.device)
    flat = padded.view(count, channels, -1)
    return flat.gather(2, index.expand(-1, channels, -1)).view_as(pixels)


def batches(
    images: LabelledImages, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches of float pixels (batch, 3, size, size) and labels; the rest is dropped.

    A dataset smaller than a batch is one batch.
    """
    order = torch.randperm(len(images), generator=generator)
    size = min(batch_size, len(images))
    for start in range(0, len(images) - size + 1, size):
        chosen = images.select(order[start : start + size].to(images.labels.device))
        yield chosen.pixels.float(), chosen.labels
