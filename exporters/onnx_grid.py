"""Values of a graph that are images: how their numbers lie in memory.

Rows, columns, channels, batch is the standard order. Linear layers that know what follows write
another one, which spares the copies of rearranging: channels in pieces that the activation pairs,
or in strips as products with a stack of narrow blocks leave them, and rows and columns cut into
even and odd ones, which is what space-to-depth needs.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from lipdeploy.errors import ExportError
from lipdeploy.exporters.onnx_graph import GraphBuilder, Weight

Layout = Literal["standard", "parity", "cells"]
PARITY = (3, 1, 0, 2, 4, 5)
"""From (m, i, m, j, c, batch), positions 2 p + i and 2 q + j, to (j, i, m, m, c, batch)."""


@dataclass(frozen=True)
class Grid:
    """A batch of images on an n x n grid.

    Attributes:
        pieces: names of values that hold equal shares of the channels, in order.
        side: n.
        channels: of all pieces.
        layout: shape of a piece with c channels:
            "standard": (n, n, c, batch);
            "parity": (2, 2, n / 2, n / 2, c, batch), column parity first;
            "cells": (4, n, n, c / 4, batch), channel (c, i, j) at part 2 j + i, one piece.
        rows: whether the last two axes are (batch, channels) instead: images as rows.
        width: of strips of channels, images being rows. Where there are any, the shapes above have
            a first axis more, the strips of a piece, and this many channels at the end.
    """

    pieces: tuple[str, ...]
    side: int
    channels: int
    layout: Layout = "standard"
    rows: bool = False
    width: int | None = None

    @property
    def axis(self) -> int:
        """Of the channels, or of their strips."""
        if self.width is not None:
            return 0
        return -1 if self.rows else -2

    @property
    def strips(self) -> tuple[int, ...]:
        """The first axis, of all pieces together; none where there are no strips."""
        if self.width is None:
            return ()
        return (self.channels // self.width // (4 if self.layout == "cells" else 1),)

    def tail(self, channels: int) -> tuple[int, int]:
        """The last two axes of a shape of so many channels, or of a strip, the batch being -1."""
        c = channels if self.width is None else self.width
        return (-1, c) if self.rows else (c, -1)


@dataclass(frozen=True)
class Wanted:
    """What the operations after a linear layer take most easily.

    Attributes:
        halves: two pieces.
        parity: that layout.
    """

    halves: bool = False
    parity: bool = False


def joined(graph: GraphBuilder, x: Grid) -> str:
    """All channels as one value, in the layout of x."""
    return graph.concatenate(x.pieces, axis=x.axis)


def ordered(graph: GraphBuilder, x: Grid, *, rows: bool) -> Grid:
    """The same values with images as rows, or as columns."""
    if x.rows == rows:
        return x
    x = x if x.width is None else merged(graph, x)
    others = {"standard": 2, "parity": 4, "cells": 3}[x.layout]
    turned = tuple(_swapped(graph, piece, others, rows=rows) for piece in x.pieces)
    return replace(x, pieces=turned, rows=rows)


def _swapped(graph: GraphBuilder, x: str, others: int, *, rows: bool) -> str:
    """The last two axes swapped, behind so many others."""
    if not rows:
        return graph.transpose(x, *range(others), others + 1, others)
    # Images to the front, then channels as wholes: ONNX Runtime swaps many small matrices slowly.
    first = graph.transpose(x, others + 1, *range(others + 1))
    return graph.transpose(first, *range(1, others + 1), 0, others + 1)


def standard(graph: GraphBuilder, x: Grid) -> str:
    """One value of shape (n, n, c, batch), or (n, n, batch, c) where images are rows."""
    x = merged(graph, x)
    (name,), n, c = x.pieces, x.side, x.channels
    if x.layout == "parity":
        name = graph.transpose(name, 2, 1, 3, 0, 4, 5)
        return graph.reshape(name, n, n, *x.tail(c))
    if x.layout == "cells":
        cells = graph.reshape(name, 2, 2, n, n, *x.tail(c // 4))
        last = (4, 5, 1, 0) if x.rows else (4, 1, 0, 5)
        return graph.reshape(graph.transpose(cells, 2, 3, *last), n, n, *x.tail(c))
    return name


def merged(graph: GraphBuilder, x: Grid) -> Grid:
    """The same values in one piece, strips side by side as channels."""
    if x.width is None:
        return replace(x, pieces=(joined(graph, x),))
    n, m = x.side, x.side // 2
    grid = {"standard": (n, n), "parity": (2, 2, m, m), "cells": (4, n, n)}[x.layout]
    name, batch, (strips,) = joined(graph, x), len(grid) + 1, x.strips
    if strips > 1:
        name = graph.transpose(name, *range(1, batch + 1), 0, batch + 1)
    name = graph.reshape(name, *grid, -1, strips * x.width)
    return replace(x, pieces=(name,), width=None)


def halves(graph: GraphBuilder, x: Grid) -> tuple[Grid, str, str]:
    """The two halves of the channels, and how they lie."""
    if len(x.pieces) == 2:
        return x, *x.pieces
    if x.layout == "cells":
        x = replace(x, pieces=(standard(graph, x),), layout="standard", width=None)
    if x.strips and x.strips[0] % 2:
        x = merged(graph, x)
    (size,) = x.strips or (x.channels,)
    return x, *graph.halves(joined(graph, x), x.axis, size)


def space_to_depth(graph: GraphBuilder, x: Grid) -> Grid:
    """Neighbourhoods of 2 x 2 as channels; an odd grid first gets a zero row and column."""
    m, c = (x.side + 1) // 2, x.channels
    if x.layout == "parity":
        name = joined(graph, x)
    else:
        name, x = standard(graph, x), replace(x, width=None)
        if x.side % 2:
            name = graph.node("Pad", name, graph.integers(0, 0, 0, 0, 1, 1, 0, 0))
        name = graph.transpose(graph.reshape(name, m, 2, m, 2, *x.tail(c)), *PARITY)
    cells = graph.reshape(name, *x.strips, 4, m, m, *x.tail(c))
    return Grid((cells,), m, 4 * c, "cells", x.rows, x.width)


class Parts:
    """The channels of a grid as they lie: (parts, n, n, channels, batch), or (.., batch, ..).

    A part is a cell of a neighbourhood, a strip, or, where there are both, a cell of a strip.
    """

    def __init__(self, graph: GraphBuilder, x: Grid) -> None:
        if x.layout == "parity":
            raise ExportError("even and odd rows apart are no layout that a linear layer takes")
        self.graph, self.rows = graph, x.rows
        self.is_cells = x.layout == "cells"
        self.name, self.strips = joined(graph, x), x.strips
        self.count = (4 if self.is_cells else 1) * math.prod(x.strips)
        self.channels = x.channels // self.count

    def gather(self, coefficients: str, count: int) -> str:
        """(parts * count, channels * batch) to (count, all channels, batch), or rows of them."""
        graph, channels = self.graph, self.count * self.channels
        if self.rows:
            if self.count > 1:
                shape = self.count, count, -1, self.channels
                coefficients = graph.transpose(graph.reshape(coefficients, *shape), 1, 2, 0, 3)
            return graph.reshape(coefficients, count, -1, channels)
        if self.count > 1:
            shape = self.count, count, self.channels, -1
            coefficients = graph.transpose(graph.reshape(coefficients, *shape), 1, 0, 2, 3)
        return graph.reshape(coefficients, count, channels, -1)

    def columns(self, blocks: Weight) -> Weight:
        """The input channels of blocks, the last axis, in the order of `gather`."""
        if not self.is_cells:
            return blocks
        graph, shape = self.graph, blocks.value.shape
        last = len(shape) - 1 + len(self.strips)
        cells = graph.reshaped(blocks, *shape[:-1], *self.strips, self.channels, 2, 2)
        turned = graph.turned(cells, *range(last), last + 2, last + 1, last)
        return graph.reshaped(turned, *shape)


def add_bias(graph: GraphBuilder, x: Grid, bias: Weight) -> Grid:
    """X + bias, of shape (c,) or (n, n, c), piece by piece."""
    if x.width is not None:
        (strips,) = x.pieces
        shaped = _in_strips(graph, x, bias, x.width)
        return replace(x, pieces=(graph.node("Add", strips, graph.operand(shaped)),))
    c, n = x.channels, x.side
    tail = (1, c) if x.rows else (c, 1)
    if bias.value.ndim == 1:
        shaped = graph.reshaped(bias, *tail)
    elif x.layout == "parity":
        shaped = graph.turned(graph.reshaped(bias, n // 2, 2, n // 2, 2, *tail), *PARITY)
    else:
        shaped = graph.reshaped(bias, n, n, *tail)
    shares = cut(graph, shaped, shaped.value.ndim + x.axis, len(x.pieces))
    pairs = zip(x.pieces, shares, strict=True)
    sums = tuple(graph.node("Add", piece, graph.operand(part)) for piece, part in pairs)
    return replace(x, pieces=sums)


def _in_strips(graph: GraphBuilder, x: Grid, bias: Weight, width: int) -> Weight:
    """A bias as the strips of x lie, rows of images."""
    n, is_parity = x.side, x.layout == "parity"
    if bias.value.ndim == 1:
        return graph.reshaped(bias, *x.strips, *[1] * (5 if is_parity else 3), width)
    if is_parity:
        cells = graph.reshaped(bias, n // 2, 2, n // 2, 2, *x.strips, 1, width)
        return graph.turned(cells, 4, *PARITY[:4], 5, 6)
    return graph.turned(graph.reshaped(bias, n, n, *x.strips, 1, width), 2, 0, 1, 3, 4)


def cut(graph: GraphBuilder, weight: Weight, axis: int, pieces: int) -> list[Weight]:
    """A weight cut into equal pieces along an axis."""
    if pieces == 1:
        return [weight]
    size = weight.value.shape[axis] // pieces
    return [graph.part(weight, axis, slice(i * size, (i + 1) * size)) for i in range(pieces)]
