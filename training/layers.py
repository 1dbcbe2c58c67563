"""The kinds of 1-Lipschitz convolutions, by name."""

from torch import nn

from lipdeploy.training.architecture import LayerName, Padding
from lipdeploy.training.bcop import AocConvolution, BcopConvolution
from lipdeploy.training.circular import CircularLayer
from lipdeploy.training.rescaled import AolConvolution, SllConvolution
from lipdeploy.training.soc import SkewOrthogonalConvolution
from lipdeploy.training.unitary import BroConvolution, CayleyConvolution

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
