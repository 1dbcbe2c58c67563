"""What an epoch draws at random, and which process computes which part of it.

Every process draws everything, as if it were alone, and takes its share: the images of a step, and
how they are moved, do not depend on how many processes there are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lipdeploy.errors import UsageError
from lipdeploy.training.data import Images
from lipdeploy.training.distributed import ALONE, Processes

MEAN_IMAGES = 50_000
"""Images, at equal distances, that the mean of a larger set is taken of: a channel's mean then has
a standard error of about 0.3 of 255, and it only centres the input."""

MEAN_BATCH = 128

Some = TypeVar("Some", bound=Images)


def split_validation(images: Some, fraction: float, seed: int) -> tuple[Some, Some]:
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


def channel_mean(images: Images, processes: Processes = ALONE) -> Tensor:
    """Mean of each channel, 0 ... 255, shape (3,); of at most `MEAN_IMAGES` images."""
    count = min(len(images), MEAN_IMAGES)
    chosen = torch.arange(count) * len(images) // count
    mine = chosen[processes.rank :: processes.size]
    sums = processes.totals(processes.together(lambda: _channel_sums(images, mine)))
    return torch.tensor(sums, dtype=torch.float64).div(count).float()


def _channel_sums(images: Images, chosen: Tensor) -> list[float]:
    total = torch.zeros(3, dtype=torch.float64)
    if len(chosen):
        for pixels, _ in images.read(chosen.split(MEAN_BATCH)):
            total += pixels.double().mean(dim=(2, 3)).sum(dim=0)
    sums: list[float] = total.tolist()
    return sums


@dataclass(frozen=True)
class Moves:
    """How each image of a batch is shifted and flipped.

    Attributes:
        down: row of the padded image that becomes the first, 0 ... 2 * reach, shape (count, 1).
        right: likewise of columns.
        flipped: whether left and right are exchanged, shape (count, 1).
        reach: largest shift.
    """

    down: Tensor
    right: Tensor
    flipped: Tensor
    reach: int

    @classmethod
    def draw(cls, count: int, reach: int, generator: torch.Generator) -> "Moves":
        """Draw every shift up to `reach` pixels, and flip half of the images."""
        down, right = (
            torch.randint(0, 2 * reach + 1, (count, 1), generator=generator) for _ in range(2)
        )
        return cls(down, right, torch.rand(count, 1, generator=generator) < 0.5, reach)

    def __getitem__(self, images: slice) -> "Moves":
        """Those of some of the images."""
        return Moves(self.down[images], self.right[images], self.flipped[images], self.reach)


def augment(pixels: Tensor, mean: Tensor, moves: Moves) -> Tensor:
    """Shift and flip each image, filling with the mean.

    Args:
        pixels: shape (batch, 3, size, size), float.
        mean: fill value of each channel, shape (3,).
        moves: of these images.
    """
    count, channels, size, _ = pixels.shape
    rows, columns = moves.down + torch.arange(size), moves.right + torch.arange(size)
    columns = torch.where(moves.flipped, columns.flip(1), columns)
    reach, side = moves.reach, size + 2 * moves.reach
    padded = mean.view(1, 3, 1, 1).expand(count, channels, side, side).clone()
    padded[:, :, reach : reach + size, reach : reach + size] = pixels
    index = (rows.unsqueeze(2) * side + columns.unsqueeze(1)).view(count, 1, -1).to(pixels.device)
    flat = padded.view(count, channels, -1)
    return flat.gather(2, index.expand(-1, channels, -1)).view_as(pixels)


@dataclass(frozen=True)
class Share:
    """What of every batch one process computes, and in how many parts, one after the other.

    Attributes:
        batch: images of a step, of all processes together.
        parts: parts of a process.
        processes: who share the batch.

    Raises:
        UsageError: if the batch does not divide.
    """

    batch: int
    parts: int
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        pieces = self.parts * self.processes.size
        below = self.batch - self.batch % pieces
        if below == self.batch:
            return
        is_nearer = below > 0 and self.batch - below <= below + pieces - self.batch
        nearest = below if is_nearer else below + pieces
        raise UsageError(
            f"a batch of {self.batch} images does not divide into {pieces} equal parts "
            f"({self.processes.size} processes, --accumulate {self.parts}); take --batch {nearest}"
        )

    @property
    def part_size(self) -> int:
        """Images that are computed at a time."""
        return self.batch // (self.parts * self.processes.size)

    def slices(self) -> Iterator[slice]:
        """The parts of this process."""
        first = self.processes.rank * self.parts
        for number in range(first, first + self.parts):
            yield slice(number * self.part_size, (number + 1) * self.part_size)


@dataclass(frozen=True)
class Part:
    """Images that are computed at a time: their positions, and how they are moved."""

    indices: Tensor
    moves: Moves


def epoch_parts(count: int, share: Share, reach: int, generator: torch.Generator) -> Iterator[Part]:
    """The parts of this process of all batches of an epoch, in a random order of the images.

    What is left over when `count` images are divided into batches is dropped.

    Args:
        count: images of an epoch, at least a batch.
        share: batch, and what this process does of it.
        reach: largest shift.
        generator: source of all randomness of the epoch, on the CPU.
    """
    order = torch.randperm(count, generator=generator)
    for start in range(0, count - share.batch + 1, share.batch):
        moves = Moves.draw(share.batch, reach, generator)
        for piece in share.slices():
            yield Part(order[start : start + share.batch][piece], moves[piece])
