"""LipConvNet-5k (Singla & Feizi, 2021 and 2022) for any width, image size and number of classes."""

import torch
from torch import Tensor, nn

from lipdeploy.training.activations import (
    ChannelMax,
    Householder,
    MaxMin,
    ProjectionPooling,
    SpaceToDepth,
)
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.heads import make_head
from lipdeploy.training.layers import make_layer

INPUT_GAIN = 4.0
"""Factor between pixels in [0, 1] and what the first layer sees: features then have unit scale."""


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
