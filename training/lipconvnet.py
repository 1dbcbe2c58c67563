"""LipConvNet-5k (Singla & Feizi, 2021 and 2022) for any width, image size and number of classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lipdeploy.choices import check_choice
from lipdeploy.errors import UsageError
from lipdeploy.training.activations import (
    ChannelMax,
    Householder,
    MaxMin,
    ProjectionPooling,
    SpaceToDepth,
)
from lipdeploy.training.heads import HEADS, HeadName, make_head
from lipdeploy.training.layers import LAYERS, LayerName, main_weight, make_layer
from lipdeploy.training.soc import PADDINGS, Padding

INPUT_GAIN = 4.0
"""Factor between pixels in [0, 1] and what the first layer sees: features then have unit scale."""

STANDARD_BLOCKS = 5

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


class LipConvNet(nn.Module):
    """A first layer, blocks of k orthogonal convolutions of which the last halves the grid, a head.

    Args:
        architecture: the shapes.
        mean: mean of each channel of the training pixels, 0 to 255, shape (3,).

    Attributes:
        body_dtype: arithmetic of everything before the head; None for that of the weights.
    """

    mean: Tensor

    def __init__(self, architecture: Architecture, mean: Tensor) -> None:
        super().__init__()
        self.architecture = architecture
        self.register_buffer("mean", mean.detach().clone().float())
        self.body_dtype: torch.dtype | None = None
        grids = architecture.grids()
        layers, channels = self._first_layer(grids[0])
        for index, grid in enumerate(grids[:-1]):
            is_last = index == len(grids) - 2
            layers += self._block(channels, grid, is_last)
            channels *= 2
        self.body = nn.Sequential(*layers)
        self.head = make_head(architecture.head, architecture.features, architecture.classes)

    def _convolution(
        self, channels: tuple[int, int], grid: int, kernel_size: int, *, strided: bool = False
    ) -> nn.Module:
        shape = self.architecture
        return make_layer(
            shape.layer, channels, grid, kernel_size, padding=shape.padding, strided=strided
        )

    def _activation(self, channels: int) -> nn.Module:
        name = self.architecture.activation
        if name == "maxmin":
            return MaxMin()
        return Householder(channels, order=2 if name == "householder2" else 1)

    def _pooling(self, channels: int) -> nn.Module:
        is_max = self.architecture.pooling == "max"
        return ChannelMax() if is_max else ProjectionPooling(channels)

    def _first_layer(self, grid: int) -> tuple[list[nn.Module], int]:
        width = self.architecture.width
        return [self._convolution((3, width), grid, 3), self._activation(width)], width

    def _block(self, channels: int, grid: int, is_last: bool) -> list[nn.Module]:
        kernel_size = 1 if is_last else 3
        layers: list[nn.Module] = []
        for _ in range(self.architecture.depth // 5 - 1):
            layer = self._convolution((channels, channels), grid, kernel_size)
            layers += [layer, self._activation(channels)]
        wide = 4 * channels
        strided = self._convolution((wide, wide), (grid + 1) // 2, kernel_size, strided=True)
        return [*layers, SpaceToDepth(), strided, self._pooling(wide)]

    def normalize(self, pixels: Tensor) -> Tensor:
        """Centre and scale pixels of 0 ... 255."""
        return (pixels - self.mean.view(3, 1, 1)) * (INPUT_GAIN / 255)

    def features(self, pixels: Tensor) -> Tensor:
        """Map pixels (batch, 3, n, n) of 0 ... 255 to features (batch, d) of the head's type."""
        x = self.normalize(pixels).to(self.body_dtype or pixels.dtype).permute(2, 3, 0, 1)
        y: Tensor = self.body(x.contiguous()).permute(2, 3, 0, 1).flatten(1)
        return y.to(self.mean.dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (batch, 3, n, n) of 0 ... 255 to logits (batch, classes)."""
        logits: Tensor = self.head(self.features(pixels))
        return logits
