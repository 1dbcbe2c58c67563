"""Which form each layer gets."""

from dataclasses import dataclass
from typing import Literal, get_args

from lipdeploy.errors import FreezeError

FormChoice = Literal["auto", "spectral", "tiled", "dense", "taylor"]
FORM_CHOICES: tuple[FormChoice, ...] = get_args(FormChoice)

DENSE_LIMIT = 2048
"""Largest side of a dense matrix that is chosen without being asked for."""

MAX_DENSE_BYTES = 2 << 30

TILE = 32
"""Side of a tile, and of the largest grid whose frequencies are all stored unless asked for."""


@dataclass(frozen=True)
class LayerShape:
    """What a choice depends on.

    Attributes:
        grid: side of the grid.
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel.
        padding: "circular" or "zero".
    """

    grid: int
    in_channels: int
    out_channels: int
    kernel_size: int
    padding: str

    @property
    def dense_side(self) -> int:
        """Rows of the skew operator as one matrix."""
        return self.grid**2 * max(self.in_channels, self.out_channels)


def choose_form(shape: LayerShape, choice: FormChoice = "auto") -> str:
    """The form of one layer: "pointwise", "spectral", "tiled", "dense" or "taylor".

    A layer without spatial extent is one matrix, whatever was asked for. A circular one is cheapest
    and exact frequency by frequency, but their number grows with the grid: a large grid is cut
    into tiles, its kernel trimmed. A zero-padded one is exact as a matrix, which a large grid
    makes too large; there the series stays, with a proven remainder.

    Raises:
        FreezeError: if the form asked for does not exist for the layer, or is too large.
    """
    if shape.kernel_size == 1:
        return "pointwise"
    is_circular = shape.padding == "circular"
    if choice == "auto":
        if is_circular:
            if shape.grid == 1:
                return "pointwise"
            return "spectral" if shape.grid <= TILE else "tiled"
        return "dense" if shape.dense_side <= DENSE_LIMIT else "taylor"
    if choice in ("spectral", "tiled") and not is_circular:
        raise FreezeError(
            f"a zero-padded layer is no convolution and has no {choice} form; use --form dense, "
            "taylor or auto, or train with --padding circular"
        )
    if choice == "tiled" and shape.grid < TILE:
        raise FreezeError(
            f"a grid of {shape.grid} is smaller than a tile of {TILE}; use --form spectral or auto"
        )
    if choice == "taylor" and is_circular:
        raise FreezeError("the taylor form is for zero padding; use --form spectral or auto")
    needed = 8 * shape.dense_side**2
    if choice == "dense" and needed > MAX_DENSE_BYTES:
        raise FreezeError(
            f"a dense {shape.dense_side} x {shape.dense_side} float64 operator needs "
            f"{needed / 2**30:.1f} GiB, limit {MAX_DENSE_BYTES / 2**30:.1f} GiB; use --form auto"
        )
    return choice
