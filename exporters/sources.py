"""Operations before a plan: linear layers without a form, and rotations of channels to fold."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from lipdeploy import frozen
from lipdeploy.exporters.forms import mixed
from lipdeploy.exporters.plan import Choice, LayerShape
from lipdeploy.operators import LinearOperator, PointwiseMatrix

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Source:
    """A linear layer, y = after * W * before * x + bias.

    Attributes:
        shape: of W.
        build: W in a form.
        bias: shape (c_out,).
        before: a matrix of channels, or None.
        after: likewise.
        name: of the module that it comes from.
    """

    shape: LayerShape
    build: Callable[[LayerShape, Choice], LinearOperator]
    bias: Array
    before: Array | None = None
    after: Array | None = None
    name: str = ""

    @property
    def can_mix(self) -> bool:
        """Whether matrices of channels can become part of W: not of a series."""
        return self.shape.padding == "circular" or self.shape.kernel_size == 1

    def operator(self, choice: Choice) -> LinearOperator:
        """The whole linear part in a form."""
        operator = self.build(self.shape, choice)
        if self.before is None and self.after is None:
            return operator
        before = np.eye(operator.in_channels) if self.before is None else self.before
        after = np.eye(operator.out_channels) if self.after is None else self.after
        result: LinearOperator = mixed(operator, before, after)
        return result

    def mixed_behind(self, matrix: Array) -> "Source":
        """With a square matrix of channels behind it."""
        after = matrix if self.after is None else matrix @ self.after
        return replace(self, after=after, bias=matrix @ self.bias)

    def mixed_before(self, matrix: Array) -> "Source":
        """With a square matrix of channels before it."""
        return replace(self, before=matrix if self.before is None else self.before @ matrix)


@dataclass(frozen=True, eq=False)
class Mixing:
    """The same orthogonal matrix of channels at every point of the grid.

    Attributes:
        matrix: shape (c, c).
        name: of the module that it comes from.
    """

    matrix: Array
    name: str = ""

    def after_space_to_depth(self) -> "Mixing":
        """What it is behind space-to-depth, whose channels are ordered (c, 2, 2)."""
        return replace(self, matrix=np.kron(self.matrix, np.eye(4)).astype(np.float64))


Item = Source | Mixing | frozen.Operation


def folded(items: Iterable[Item]) -> list[Source | frozen.Operation]:
    """The same function with matrices of channels taken into linear layers, where these can.

    A matrix goes into the layer right before it, or through space-to-depth into the one behind.
    """
    done: list[Item] = []
    for item in items:
        last = done[-1] if done else None
        if isinstance(item, Mixing) and isinstance(last, Source) and last.can_mix:
            done[-1] = last.mixed_behind(item.matrix)
        elif isinstance(item, Mixing) and isinstance(last, Mixing):
            done[-1] = replace(item, matrix=item.matrix @ last.matrix)
        elif isinstance(item, frozen.SpaceToDepth) and isinstance(last, Mixing):
            done[-1:] = [item, last.after_space_to_depth()]
        elif isinstance(item, Source) and isinstance(last, Mixing) and item.can_mix:
            done[-1] = item.mixed_before(last.matrix)
        else:
            done.append(item)
    return _with_neighbours(_with_grids(done))


def _with_grids(items: list[Item]) -> list[Source | frozen.Operation]:
    """Matrices that are left as linear layers of their own."""
    grid, done = 0, list[Source | frozen.Operation]()
    for item in items:
        if isinstance(item, Source):
            grid = item.shape.grid
        elif isinstance(item, frozen.SpaceToDepth):
            grid = (grid + 1) // 2
        done.append(_pointwise(item, grid) if isinstance(item, Mixing) else item)
    return done


def _pointwise(mixing: Mixing, grid: int) -> Source:
    channels = len(mixing.matrix)
    return Source(
        LayerShape(grid, channels, channels, 1, "circular"),
        lambda shape, choice: PointwiseMatrix(shape.grid, np.ascontiguousarray(mixing.matrix.T)),
        np.zeros(channels),
        name=mixing.name,
    )


def _with_neighbours(
    items: list[Source | frozen.Operation],
) -> list[Source | frozen.Operation]:
    """Shapes that know of space-to-depth before and behind."""
    done: list[Source | frozen.Operation] = []
    for index, item in enumerate(items):
        if not isinstance(item, Source):
            done.append(item)
            continue
        following = takewhile(lambda other: not isinstance(other, Source), items[index + 1 :])
        cut = any(isinstance(other, frozen.SpaceToDepth) for other in following)
        cells = index > 0 and isinstance(items[index - 1], frozen.SpaceToDepth)
        done.append(replace(item, shape=replace(item.shape, cells=cells, cut=cut)))
    return done
