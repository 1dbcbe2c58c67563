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
    """

    pieces: tuple[str, ...]
    side: int
    channels: int
    layout: Layout = "standard"


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
    return graph.concatenate(x.pieces, axis=-2)


def standard(graph: GraphBuilder, x: Grid) -> str:
    """One value of shape (n, n, c, batch)."""
    name, n, c = joined(graph, x), x.side, x.channels
    if x.layout == "parity":
        name = graph.transpose(name, 2, 1, 3, 0, 4, 5)
        return graph.reshape(name, n, n, c, -1)
    if x.layout == "cells":
        cells = graph.reshape(name, 2, 2, n, n, c // 4, -1)
        return graph.reshape(graph.transpose(cells, 2, 3, 4, 1, 0, 5), n, n, c, -1)
    return name


def halves(graph: GraphBuilder, x: Grid) -> tuple[Grid, str, str]:
    """The two halves of the channels, and how they lie."""
    if len(x.pieces) == 2:
        return x, *x.pieces
    if x.layout == "cells":
        x = replace(x, pieces=(standard(graph, x),), layout="standard")
    return x, *graph.halves(joined(graph, x), -2, x.channels)


def space_to_depth(graph: GraphBuilder, x: Grid) -> Grid:
    """Neighbourhoods of 2 x 2 as channels; an odd grid first gets a zero row and column."""
    m, c = (x.side + 1) // 2, x.channels
    if x.layout == "parity":
        name = joined(graph, x)
    else:
        name = standard(graph, x)
        if x.side % 2:
            name = graph.node("Pad", name, graph.integers(0, 0, 0, 0, 1, 1, 0, 0))
        name = graph.transpose(graph.reshape(name, m, 2, m, 2, c, -1), *PARITY)
    return Grid((graph.reshape(name, 4, m, m, c, -1),), m, 4 * c, "cells")


def add_bias(graph: GraphBuilder, x: Grid, bias: Weight) -> Grid:
    """X + bias, of shape (c,) or (n, n, c), piece by piece."""
    c, n = x.channels, x.side
    if bias.value.ndim == 1:
        shaped = graph.reshaped(bias, c, 1)
    elif x.layout == "parity":
        shaped = graph.turned(graph.reshaped(bias, n // 2, 2, n // 2, 2, c, 1), *PARITY)
    else:
        shaped = graph.reshaped(bias, n, n, c, 1)
    shares = cut(graph, shaped, shaped.value.ndim - 2, len(x.pieces))
    pairs = zip(x.pieces, shares, strict=True)
    sums = tuple(graph.node("Add", piece, graph.operand(part)) for piece, part in pairs)
    return replace(x, pieces=sums)


def cut(graph: GraphBuilder, weight: Weight, axis: int, pieces: int) -> list[Weight]:
    """A weight cut into equal pieces along an axis."""
    if pieces == 1:
        return [weight]
    size = weight.value.shape[axis] // pieces
    return [graph.part(weight, axis, slice(i * size, (i + 1) * size)) for i in range(pieces)]
