"""LipConvNet-5k (Singla & Feizi, 2021 and 2022) for any width, image size and number of classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor, nn

from lipdeploy.choices import check_choice
from lipdeploy.errors import UsageError
from lipdeploy.training.activations import ChannelMax, MaxMin, SpaceToDepth
from lipdeploy.training.heads import HEADS, HeadName, make_head
from lipdeploy.training.soc import PADDINGS, Padding, SkewOrthogonalConvolution

INPUT_GAIN = 4.0
"""Factor between pixels in [0, 1] and what the first layer sees: features then have unit scale."""

STANDARD_BLOCKS = 5


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes the shapes of a LipConvNet.

    Attributes:
        image_size: side of the square RGB input.
        classes: number of classes, at least 2.
        width: channels after the first layer; even.
        depth: 5 k, where k is the number of convolutions in a block.
        head: "linear", "lln" or "mlp".
        padding: "circular" or "zero".
    """

    image_size: int
    classes: int
    width: int = 32
    depth: int = 5
    head: HeadName = "lln"
    padding: Padding = "circular"

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

    def kernel_channels(self) -> Iterator[int]:
        """Channels of each skew kernel, first layer to last."""
        channels = self.width
        yield max(3, channels)
        for _ in self.grids()[1:]:
            yield from repeat(channels, self.depth // 5 - 1)
            yield 4 * channels
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
        self, in_channels: int, out_channels: int, grid: int, kernel_size: int
    ) -> SkewOrthogonalConvolution:
        padding = self.architecture.padding
        return SkewOrthogonalConvolution(in_channels, out_channels, grid, kernel_size, padding)

    def _first_layer(self, grid: int) -> tuple[list[nn.Module], int]:
        width = self.architecture.width
        return [self._convolution(3, width, grid, 3), MaxMin()], width

    def _block(self, channels: int, grid: int, is_last: bool) -> list[nn.Module]:
        kernel_size = 1 if is_last else 3
        layers: list[nn.Module] = []
        for _ in range(self.architecture.depth // 5 - 1):
            layers += [self._convolution(channels, channels, grid, kernel_size), MaxMin()]
        strided = self._convolution(4 * channels, 4 * channels, (grid + 1) // 2, kernel_size)
        return [*layers, SpaceToDepth(), strided, ChannelMax()]

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
