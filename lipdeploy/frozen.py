"""The frozen network: one immutable value of numpy arrays that everything after training uses.

It maps pixels (batch, 3, n, n), 0 ... 255, to features and logits. The real-arithmetic function
that its stored weights define is what a certificate speaks about; `FrozenNetwork.features`
evaluates it in float64 and `lipdeploy.engine_error` bounds how far off that can be.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lipdeploy.arithmetic import Arithmetic, stored
from lipdeploy.bounds import up
from lipdeploy.errors import ModelError, ShapeError
from lipdeploy.heads import Head
from lipdeploy.operators import LinearOperator

Array = NDArray[np.float64]
Weights = NDArray[Any]
Grid = tuple[int, int]
"""Side and channels of a grid."""

MAX_IMAGE_SIZE = 1024
"""Largest side of the input."""

MAX_VALUES = 1 << 24
"""Most numbers that one image may become; a file that claims more would want too much memory."""


Colour = tuple[int, int, int]
"""Red, green and blue, 0 ... 255."""

MIDDLE_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Shift:
    """x - colour: exact for whole numbers, and it keeps what follows small.

    Attributes:
        colour: subtracted at every point of the grid.
    """

    kind: ClassVar[str] = "shift"
    colour: Colour

    def __post_init__(self) -> None:
        numbers: tuple[object, ...] = self.colour
        is_colour = all(type(part) is int and 0 <= part <= 255 for part in numbers)
        if len(numbers) != 3 or not is_colour:
            raise ShapeError(f"shift: {self.colour!r} is no colour")

    def shape_after(self, shape: Grid) -> Grid:
        """The same shape; raises ShapeError unless there are three channels."""
        if shape[1] != 3:
            raise ShapeError(f"shift: {shape[1]} channels are no colour")
        return shape

    def __call__(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, 3)."""
        y: Array = x - np.array(self.colour, dtype=np.float64)
        return y


@dataclass(frozen=True, eq=False)
class Linear:
    """y = operator(x) + bias.

    Attributes:
        operator: the linear part.
        bias: shape (c_out,) or (n, n, c_out).
    """

    kind: ClassVar[str] = "linear"
    operator: LinearOperator
    bias: Weights

    def shape_after(self, shape: Grid) -> Grid:
        """Shape of the output for an input of `shape`; raises ShapeError if it does not fit."""
        operator = self.operator
        if shape != (operator.grid, operator.in_channels):
            raise ShapeError(
                f"{operator.form}: takes {operator.in_channels} channels on a grid of "
                f"{operator.grid}, gets {shape[1]} on {shape[0]}"
            )
        n, c = operator.grid, operator.out_channels
        if self.bias.shape not in ((c,), (n, n, c)):
            raise ShapeError(f"bias of shape {self.bias.shape} for {c} channels on a grid of {n}")
        return n, c

    def __call__(self, x: Array) -> Array:
        """Apply in float64 to x of shape (n, n, batch, c_in)."""
        bias = self.bias.astype(np.float64)
        y: Array = self.operator.mv(x) + (bias if bias.ndim == 1 else bias[:, :, None, :])
        return y


@dataclass(frozen=True)
class MaxMin:
    """Maximum, then minimum, of channels i and i + c/2: an exact permutation of each pair."""

    kind: ClassVar[str] = "maxmin"

    def shape_after(self, shape: Grid) -> Grid:
        """The same shape; raises ShapeError for an odd number of channels."""
        _check_even(shape)
        return shape

    def __call__(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c)."""
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([np.maximum(first, second), np.minimum(first, second)], axis=-1)


@dataclass(frozen=True)
class ChannelMax:
    """Maximum of channels i and i + c/2: 1-Lipschitz and exact."""

    kind: ClassVar[str] = "channel_max"

    def shape_after(self, shape: Grid) -> Grid:
        """Half the channels; raises ShapeError for an odd number."""
        _check_even(shape)
        return shape[0], shape[1] // 2

    def __call__(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c)."""
        first, second = np.split(x, 2, axis=-1)
        y: Array = np.maximum(first, second)
        return y


@dataclass(frozen=True)
class ProjectionPooling:
    """Distance of channels (p, q) = (i, i + c/2) to the half-line of p >= 0: |(min(p, 0), q)|.

    A distance to a set is 1-Lipschitz (Singla & Feizi, 2022), and at most the norm. Unlike all else
    that is not linear it is rounded, see `lipdeploy.rounding.Rounding.distance_of_pairs`.
    """

    kind: ClassVar[str] = "projection_pooling"

    def shape_after(self, shape: Grid) -> Grid:
        """Half the channels; raises ShapeError for an odd number."""
        _check_even(shape)
        return shape[0], shape[1] // 2

    def __call__(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c)."""
        first, second = np.split(x, 2, axis=-1)
        negative = np.minimum(first, 0.0)
        y: Array = np.sqrt(negative * negative + second * second)
        return y


@dataclass(frozen=True)
class SpaceToDepth:
    """Neighbourhoods of 2 x 2 become channels; an odd grid first gets a zero row and column."""

    kind: ClassVar[str] = "space_to_depth"

    def shape_after(self, shape: Grid) -> Grid:
        """Half the grid, rounded up, and four times the channels."""
        return (shape[0] + 1) // 2, 4 * shape[1]

    def __call__(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c); the new channels are ordered (c, 2, 2)."""
        odd = x.shape[0] % 2
        x = np.pad(x, ((0, odd), (0, odd), (0, 0), (0, 0)))
        m, batch, channels = x.shape[0] // 2, x.shape[2], x.shape[3]
        cells = x.reshape(m, 2, m, 2, batch, channels).transpose(0, 2, 4, 5, 1, 3)
        return cells.reshape(m, m, batch, 4 * channels)


Operation = Shift | Linear | MaxMin | ChannelMax | ProjectionPooling | SpaceToDepth

EXACT = (Shift, MaxMin, ChannelMax, SpaceToDepth)
"""Operations that round nothing (a shift once, which is counted at the input), keep distances or
make them smaller, and do not raise norms. Whoever bounds rounding must know all others by name."""


def _check_even(shape: Grid) -> None:
    if shape[1] % 2:
        raise ShapeError(f"{shape[1]} channels cannot be paired")


@dataclass(frozen=True, eq=False)
class FrozenNetwork:
    """Operations on grids, then a head.

    Attributes:
        image_size: side n of the input (batch, 3, n, n).
        operations: applied in order, in grid-first layout.
        head: from flattened features, ordered (channel, row, column), to logits.

    Raises:
        ShapeError: if the operations do not fit together, or a shift is not the first.
        ModelError: if a weight is not finite.
    """

    image_size: int
    operations: tuple[Operation, ...]
    head: Head

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ShapeError(f"images of {self.image_size} pixels, limit {MAX_IMAGE_SIZE}")
        if any(isinstance(operation, Shift) for operation in self.operations[1:]):
            raise ShapeError("a shift must come first")
        shape = (self.image_size, 3)
        for operation in self.operations:
            shape = operation.shape_after(shape)
            if shape[0] ** 2 * shape[1] > MAX_VALUES:
                raise ShapeError(f"{shape[1]} channels on a grid of {shape[0]} are too many")
        if shape[0] ** 2 * shape[1] != self.head.features:
            raise ShapeError(
                f"the body gives {shape[0] ** 2 * shape[1]} features, the head takes "
                f"{self.head.features}"
            )
        for name, weights in self.weights().items():
            if not np.all(np.isfinite(weights)):
                raise ModelError(f"{name}: NaN or infinite weights")

    @property
    def centre(self) -> Colour:
        """The colour around which rounding errors are bounded; any would be sound."""
        first = self.operations[0] if self.operations else None
        return first.colour if isinstance(first, Shift) else MIDDLE_GREY

    @cached_property
    def largest_values(self) -> int:
        """The most numbers that one image becomes on the way."""
        shape, largest = (self.image_size, 3), 3 * self.image_size**2
        for operation in self.operations:
            shape = operation.shape_after(shape)
            largest = max(largest, shape[0] ** 2 * shape[1])
        return largest

    def linear(self) -> Iterator[Linear]:
        """The linear layers, first to last."""
        return (operation for operation in self.operations if isinstance(operation, Linear))

    def weights(self) -> dict[str, Weights]:
        """All stored arrays by name: layer<i>.<name>, layer<i>.bias, head.<name>."""
        named: dict[str, Weights] = {}
        for index, layer in enumerate(self.linear()):
            for name, weights in {**layer.operator.weights(), "bias": layer.bias}.items():
                named[f"layer{index}.{name}"] = weights
        return named | {f"head.{name}": w for name, w in self.head.weights().items()}

    def stored_as(self, dtype: DTypeLike) -> "FrozenNetwork":
        """With operators rounded to `dtype`, biases and head to at least float32."""
        small = np.promote_types(dtype, np.float32)
        operations = tuple(
            Linear(op.operator.stored_as(dtype), stored(op.bias, small))
            if isinstance(op, Linear)
            else op
            for op in self.operations
        )
        return FrozenNetwork(self.image_size, operations, self.head.stored_as(small))

    def rounded_to(self, arithmetic: Arithmetic) -> "FrozenNetwork":
        """With operators and biases that are operands of an arithmetic; the head is as it was."""
        operations = tuple(
            Linear(op.operator.rounded_to(arithmetic), arithmetic.nearest(op.bias))
            if isinstance(op, Linear)
            else op
            for op in self.operations
        )
        return FrozenNetwork(self.image_size, operations, self.head)

    def features(self, pixels: Array) -> Array:
        """Map pixels (batch, 3, n, n), 0 ... 255, to features (batch, d) in float64.

        Raises:
            ShapeError: if the pixels have another shape.
        """
        n = self.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, n, n):
            raise ShapeError(f"got pixels of shape {pixels.shape}, expected (batch, 3, {n}, {n})")
        x = np.ascontiguousarray(pixels.astype(np.float64).transpose(2, 3, 0, 1))
        for operation in self.operations:
            x = operation(x)
        return x.transpose(2, 3, 0, 1).reshape(len(pixels), -1)

    @cached_property
    def layer_norms_upper(self) -> tuple[float, ...]:
        """Upper bounds of the norm of each linear layer."""
        return tuple(layer.operator.norm_upper for layer in self.linear())

    @cached_property
    def lipschitz_upper(self) -> float:
        """Upper bound of the Lipschitz constant from pixels (0 ... 255) to features.

        The product of the layers' norms; all other operations are 1-Lipschitz.
        """
        return product_upper(self.layer_norms_upper)


def product_upper(factors: Iterable[float]) -> float:
    """The product of positive numbers, rounded up."""
    product = 1.0
    for factor in factors:
        product = up(product * factor)
    return product
