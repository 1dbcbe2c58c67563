"""Images that stay in their files and are decoded whenever they are needed."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import tee
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lipdeploy.training.data import Batches, LabelledImages
from lipdeploy.training.decoding import decode_list, decode_lists

CHUNK = 32
"""Files that one task of a decoding process holds: some megabytes of images of 224 pixels."""

HASH_OF_FILES = "files:"
"""Begins the hash of a dataset whose images were not read for it."""


ON_CPU = torch.device("cpu")


@dataclass(frozen=True)
class StreamedImages:
    """Image files of one dataset with their labels; pixels are those that `LabelledImages` hold.

    Attributes:
        files: their paths.
        labels: class indices, shape (count,), int64, on the CPU.
        side: of the decoded images.
        workers: decoding processes of one `read`; with 1 this process decodes.
        device: where `read` puts the pixels.
    """

    files: Sequence[Path]
    labels: Tensor
    side: int
    workers: int
    device: torch.device = ON_CPU

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    @cached_property
    def sha256(self) -> str:
        """Hash of class folder, name and size of each file; moving the dataset does not change it.

        A file that is replaced by another of its name and size is not noticed.
        """
        digest = hashlib.sha256(f"{self.side} {len(self)}\n".encode())
        for path in self.files:
            name = os.fsencode(Path(path.parent.name, path.name))
            digest.update(name + f"\0{path.stat().st_size}\n".encode())
        return HASH_OF_FILES + digest.hexdigest()

    def select(self, indices: Tensor) -> "StreamedImages":
        """The images at `indices`, in that order."""
        files = [self.files[index] for index in indices.tolist()]
        return replace(self, files=files, labels=self.labels[indices])

    def to(self, device: torch.device) -> "StreamedImages":
        """The same images, to be read onto a device."""
        return replace(self, device=device)

    def loaded(self) -> LabelledImages:
        """All of them in memory: for a few."""
        return LabelledImages(torch.from_numpy(decode_list(self.files, self.side)), self.labels)

    def read(self, wanted: Iterable[Tensor]) -> Batches:
        """Float pixels (count, 3, side, side) and labels of each list of indices, in turn.

        Raises:
            DatasetError: if an image cannot be read.
            TrainingError: if a decoding process was killed.
        """
        coming, present = tee(wanted)
        tasks = (self._files(chunk) for indices in coming for chunk in indices.split(CHUNK))
        with closing(decode_lists(tasks, self.side, self.workers)) as decoded:
            for indices in present:
                pixels = np.concatenate([next(decoded) for _ in indices.split(CHUNK)])
                on_device = torch.from_numpy(pixels).to(self.device).float()
                yield on_device, self.labels[indices].to(self.device)

    def _files(self, indices: Tensor) -> list[Path]:
        return [self.files[index] for index in indices.tolist()]
