"""What a frozen linear layer is, and its forms that are one matrix.

The other forms are in `lipdeploy.spectral` and `lipdeploy.taylor`.

An operator maps grid-first arrays (n, n, batch, c_in) to (n, n, batch, c_out). It knows its
weights by name, applies itself in float64, and bounds its own norm and rounding error. Weights are
float64, float32 or float16; what an operator *is* is defined by the weights as they are stored.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lipdeploy.arithmetic import Arithmetic, stored
from lipdeploy.errors import ShapeError
from lipdeploy.rounding import Product, Rounding, Step

Array = NDArray[np.float64]
Weights = NDArray[Any]
Conversion = Callable[[Weights], Weights]


class LinearOperator(Protocol):
    """A linear map of n x n grids; `form` names it in the manifest and on the command line."""

    form: ClassVar[str]

    @property
    def grid(self) -> int:
        """Side of the grid."""

    @property
    def in_channels(self) -> int:
        """Channels of the input."""

    @property
    def out_channels(self) -> int:
        """Channels of the output."""

    def parameters(self) -> dict[str, Any]:
        """The plain values that, with the weights, make the operator."""

    def weights(self) -> dict[str, Weights]:
        """The stored arrays by name."""

    def stored_as(self, dtype: DTypeLike) -> Self:
        """The operator whose large weights are rounded to `dtype`, transforms to float32 or it."""

    def rounded_to(self, arithmetic: Arithmetic) -> Self:
        """The operator whose weights are all operands of this arithmetic, stored as before."""

    def scaled(self, factor: float) -> Self:
        """The operator times a number."""

    def mv(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c_in), in float64."""

    @property
    def norm_upper(self) -> float:
        """Rigorous upper bound of the spectral norm."""

    def step(self, rounding: Rounding) -> Step:
        """Norm and rounding error of its nodes in this arithmetic; `mv` is that in float64."""


class Convertible(ABC):
    """How operators get other weights."""

    @abstractmethod
    def converted(self, large: Conversion, small: Conversion) -> Self:
        """With what `large` makes of matrices and blocks, and `small` of transforms."""

    def stored_as(self, dtype: DTypeLike) -> Self:
        """The operator whose large weights are rounded to `dtype`, transforms to float32 or it."""
        at_least = np.promote_types(dtype, np.float32)
        return self.converted(lambda w: stored(w, dtype), lambda w: stored(w, at_least))

    def rounded_to(self, arithmetic: Arithmetic) -> Self:
        """The operator whose weights are all operands of this arithmetic, stored as before."""
        return self.converted(arithmetic.nearest, arithmetic.nearest)


def exact(weights: Weights) -> Array:
    """Stored weights in float64."""
    return weights.astype(np.float64)


def check_shape(operator: LinearOperator, x: Array) -> None:
    """Raise ShapeError unless x is (n, n, batch, c_in)."""
    n, c = operator.grid, operator.in_channels
    if x.ndim != 4 or x.shape[:2] != (n, n) or x.shape[3] != c:
        raise ShapeError(f"{operator.form}: got shape {x.shape}, expected ({n}, {n}, batch, {c})")


@dataclass(frozen=True, eq=False)
class _OneMatrix(Convertible):
    """What the forms that are one matrix share.

    Attributes:
        grid: side of the grid.
        matrix: applied from the right.
    """

    form: ClassVar[str]
    nodes: ClassVar[int] = 1
    """Products into which a graph may cut the outputs at one point."""

    grid: int
    matrix: Weights

    def __post_init__(self) -> None:
        if self.grid < 1 or self.matrix.ndim != 2 or 0 in self.matrix.shape:
            raise ShapeError(
                f"{self.form}: matrix of shape {self.matrix.shape} on a grid of {self.grid}"
            )

    def parameters(self) -> dict[str, Any]:
        """The side of the grid."""
        return {"grid": self.grid}

    def weights(self) -> dict[str, Weights]:
        """The matrix."""
        return {"matrix": self.matrix}

    def converted(self, large: Conversion, small: Conversion) -> Self:
        """With another matrix."""
        return replace(self, matrix=large(self.matrix))

    def scaled(self, factor: float) -> Self:
        """With the matrix times a number."""
        return replace(self, matrix=self.matrix * factor)

    @cached_property
    def norm_upper(self) -> float:
        """The norm of the matrix, also where it acts at every grid point: blocks are equal."""
        return self._product.norm_upper

    @cached_property
    def _product(self) -> Product:
        size = self.grid**2 * int(self.matrix.shape[1])
        return Product(self.matrix, size, nodes=self.nodes)

    def step(self, rounding: Rounding) -> Step:
        """One matrix product with sums as long as the matrix has rows."""
        return rounding.product(self._product)


@dataclass(frozen=True, eq=False)
class PointwiseMatrix(_OneMatrix):
    """The same matrix, shape (c_in, c_out), at every grid point: y = x @ matrix."""

    form: ClassVar[str] = "pointwise"
    nodes: ClassVar[int] = 2

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.matrix.shape[0])

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.matrix.shape[1])

    def mv(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c_in)."""
        check_shape(self, x)
        y: Array = x @ exact(self.matrix)
        return y


@dataclass(frozen=True, eq=False)
class DenseMatrix(_OneMatrix):
    """One matrix, shape (n * n * c_in, n * n * c_out), on flattened (row, column, channel)."""

    form: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(side % self.grid**2 for side in self.matrix.shape):
            raise ShapeError(f"dense: matrix of shape {self.matrix.shape} on a grid of {self.grid}")

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.matrix.shape[0]) // self.grid**2

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.matrix.shape[1]) // self.grid**2

    def mv(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c_in)."""
        check_shape(self, x)
        n, batch = self.grid, x.shape[2]
        rows = x.transpose(2, 0, 1, 3).reshape(batch, -1) @ exact(self.matrix)
        y: Array = rows.reshape(batch, n, n, -1).transpose(1, 2, 0, 3)
        return y
