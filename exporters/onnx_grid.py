"""Values of a graph that are images: how their numbers lie in memory.

Rows, columns, channels, batch is the standard order. Linear layers that know what follows write
another one, which spares the copies of rearranging: channels in pieces that the activation pairs,
and rows and columns cut into even and odd ones, which is what space-to-depth needs.
"""

from dataclasses import dataclass, replace
from typing import Literal

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
    """

    pieces: tuple[str, ...]
    side: int
    channels: int
    layout: Layout = "standard"
    rows: bool = False

    @property
    def axis(self) -> int:
        """Of the channels, from the end."""
        return -1 if self.rows else -2

    def tail(self, channels: int) -> tuple[int, int]:
        """The last two axes of a shape, the batch being -1."""
        return (-1, channels) if self.rows else (channels, -1)


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
    others = {"standard": 2, "parity": 4, "cells": 3}[x.layout]
    turned = (graph.transpose(piece, *range(others), others + 1, others) for piece in x.pieces)
    return replace(x, pieces=tuple(turned), rows=rows)


def standard(graph: GraphBuilder, x: Grid) -> str:
    """One value of shape (n, n, c, batch), or (n, n, batch, c) where images are rows."""
    name, n, c = joined(graph, x), x.side, x.channels
    if x.layout == "parity":
        name = graph.transpose(name, 2, 1, 3, 0, 4, 5)
        return graph.reshape(name, n, n, *x.tail(c))
    if x.layout == "cells":
        cells = graph.reshape(name, 2, 2, n, n, *x.tail(c // 4))
        last = (4, 5, 1, 0) if x.rows else (4, 1, 0, 5)
        return graph.reshape(graph.transpose(cells, 2, 3, *last), n, n, *x.tail(c))
    return name


def halves(graph: GraphBuilder, x: Grid) -> tuple[Grid, str, str]:
    """The two halves of the channels, and how they lie."""
    if len(x.pieces) == 2:
        return x, *x.pieces
    if x.layout == "cells":
        x = replace(x, pieces=(standard(graph, x),), layout="standard")
    return x, *graph.halves(joined(graph, x), x.axis, x.channels)


def space_to_depth(graph: GraphBuilder, x: Grid) -> Grid:
    """Neighbourhoods of 2 x 2 as channels; an odd grid first gets a zero row and column."""
    m, c = (x.side + 1) // 2, x.channels
    if x.layout == "parity":
        name = joined(graph, x)
    else:
        name = standard(graph, x)
        if x.side % 2:
            name = graph.node("Pad", name, graph.integers(0, 0, 0, 0, 1, 1, 0, 0))
        name = graph.transpose(graph.reshape(name, m, 2, m, 2, *x.tail(c)), *PARITY)
    cells = graph.reshape(name, 4, m, m, *x.tail(c))
    return Grid((cells,), m, 4 * c, "cells", x.rows)


def add_bias(graph: GraphBuilder, x: Grid, bias: Weight) -> Grid:
    """X + bias, of shape (c,) or (n, n, c), piece by piece."""
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


def cut(graph: GraphBuilder, weight: Weight, axis: int, pieces: int) -> list[Weight]:
    """A weight cut into equal pieces along an axis."""
    if pieces == 1:
        return [weight]
    size = weight.value.shape[axis] // pieces
    return [graph.part(weight, axis, slice(i * size, (i + 1) * size)) for i in range(pieces)]
