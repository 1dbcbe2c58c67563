"""The kinds of 1-Lipschitz convolutions, by name."""

from collections.abc import Callable
from typing import Literal, get_args

from torch import nn

from lipdeploy.training.bcop import AocConvolution, BcopConvolution
from lipdeploy.training.circular import CircularLayer
from lipdeploy.training.rescaled import AolConvolution, SllConvolution
from lipdeploy.training.soc import Padding, SkewOrthogonalConvolution
from lipdeploy.training.unitary import BroConvolution, CayleyConvolution

LayerName = Literal["soc", "bcop", "cayley", "aol", "sll", "aoc", "bro"]
LAYERS: tuple[LayerName, ...] = get_args(LayerName)

CIRCULAR: dict[LayerName, type[CircularLayer]] = {
    "bcop": BcopConvolution,
    "cayley": CayleyConvolution,
    "aol": AolConvolution,
    "sll": SllConvolution,
    "aoc": AocConvolution,
    "bro": BroConvolution,
}
"""All but SOC; they exist with circular padding only."""


def make_layer(
    name: LayerName,
    channels: tuple[int, int],
    grid: int,
    kernel_size: int,
    *,
    padding: Padding = "circular",
    strided: bool = False,
) -> nn.Module:
    """A layer.

    Args:
        name: its kind.
        channels: of input and output.
        grid: side of the grid.
        kernel_size: side of the kernel.
        padding: of SOC; all others are circular.
        strided: whether the input comes from space-to-depth.
    """
    if name == "soc":
        return SkewOrthogonalConvolution(*channels, grid, kernel_size, padding)
    return CIRCULAR[name](*channels, grid, kernel_size, strided=strided)


def main_weight(name: LayerName) -> tuple[str, Callable[[int, int], int]]:
    """Name of a layer's largest parameter, and its size for channels and kernel size."""
    if name == "soc":
        return "kernel.centre", lambda c, k: c * (c - 1) // 2
    if name in ("bcop", "aoc"):
        return "weight", lambda c, k: c * c
    if name == "bro":
        return "weight", lambda c, k: k * k * c * max(1, c // 2)
    return "weight", lambda c, k: k * k * c * c
