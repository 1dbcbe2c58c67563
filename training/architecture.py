"""What fixes the shapes of a network: plain values, known without torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, get_args

from lipdeploy.choices import check_choice
from lipdeploy.errors import UsageError

STANDARD_BLOCKS = 5

HeadName = Literal["linear", "lln", "mlp"]
HEADS: tuple[HeadName, ...] = get_args(HeadName)
Padding = Literal["circular", "zero"]
PADDINGS: tuple[Padding, ...] = get_args(Padding)
LayerName = Literal["soc", "bcop", "cayley", "aol", "sll", "aoc", "bro"]
LAYERS: tuple[LayerName, ...] = get_args(LayerName)
Activation = Literal["maxmin", "householder", "householder2"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
Pooling = Literal["max", "projection"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes the shapes of a LipConvNet.

    Attributes:
        image_size: side of the square RGB input.
        classes: number of classes, at least 2.
        width: channels after the first layer; even.
        depth: 5 k, where k is the number of convolutions in a block.
        head: "linear", "lln" or "mlp".
        padding: "circular" or, for SOC, "zero".
        layer: kind of the convolutions, see `lipdeploy.training.layers`.
        activation: "maxmin", or "householder" of order 1 or 2.
        pooling: how a block halves its channels: "max" or "projection".
    """

    image_size: int
    classes: int
    width: int = 32
    depth: int = 5
    head: HeadName = "lln"
    padding: Padding = "circular"
    layer: LayerName = "soc"
    activation: Activation = "maxmin"
    pooling: Pooling = "max"

    def __post_init__(self) -> None:
        numbers = (self.image_size, self.classes, self.width, self.depth)
        if not all(isinstance(number, int) for number in numbers):
            raise UsageError(f"sizes must be whole numbers, got {numbers}")
        if self.image_size < 4:
            raise UsageError(f"--image-size {self.image_size}: must be at least 4")
        if self.classes < 2:
            raise UsageError(f"a classifier needs at least 2 classes, got {self.classes}")
        if self.width < 4 or self.width % 2:
            raise UsageError(f"--width {self.width}: must be an even number of at least 4")
        if self.depth < 5 or self.depth % 5:
            raise UsageError(f"--depth {self.depth}: must be a multiple of 5 (5, 10, 15, ...)")
        check_choice("--head", self.head, HEADS)
        check_choice("--padding", self.padding, PADDINGS)
        check_choice("--layer", self.layer, LAYERS)
        check_choice("--activation", self.activation, ACTIVATIONS)
        check_choice("--pooling", self.pooling, POOLINGS)
        if self.padding == "zero" and self.layer != "soc":
            raise UsageError(f"--padding zero: --layer {self.layer} is circular; leave one out")

    def grids(self) -> list[int]:
        """Side of the grid before each block and after the last one.

        Five blocks, fewer where the grid shrinks to one point before, more until it is at most
        2 x 2.
        """
        sides = [self.image_size]
        while sides[-1] > 1 and (len(sides) <= STANDARD_BLOCKS or sides[-1] > 2):
            sides.append((sides[-1] + 1) // 2)
        return sides

    @property
    def features(self) -> int:
        """Length of the feature vector."""
        grids = self.grids()
        return int(self.width * 2 ** (len(grids) - 1) * grids[-1] ** 2)

    def main_weights(self) -> Iterator[int]:
        """Numbers in the main weight of each convolution, first layer to last."""
        _, size = main_weight(self.layer)
        channels, grids = self.width, self.grids()
        yield size(max(3, channels), 3)
        for index in range(len(grids) - 1):
            kernel_size = 1 if index == len(grids) - 2 else 3
            yield from repeat(size(channels, kernel_size), self.depth // 5 - 1)
            yield size(4 * channels, kernel_size)
            channels *= 2


def main_weight(name: LayerName) -> tuple[str, Callable[[int, int], int]]:
    """Name of a layer's largest parameter, and its size for channels and kernel size."""
    if name == "soc":
        return "kernel.centre", lambda c, k: c * (c - 1) // 2
    if name in ("bcop", "aoc"):
        return "weight", lambda c, k: c * c
    if name == "bro":
        return "weight", lambda c, k: k * k * c * max(1, c // 2)
    return "weight", lambda c, k: k * k * c * c
