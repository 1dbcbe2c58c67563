"""The ONNX nodes of an operator of tiles: cut, stack along the batch, apply, join."""

from collections.abc import Callable

from lipdeploy.exporters.onnx_graph import GraphBuilder
from lipdeploy.tiled import TiledConv

BATCH = 3
"""Axis of the batch: values here have shape (rows, columns, channels, batch)."""


def emit_tiles(
    operator: TiledConv, graph: GraphBuilder, x: str, emit_inner: Callable[[str], str]
) -> str:
    """Add the nodes of `TiledConv.mv`.

    One axis after the other, so that there are 4 slices for each tile of an axis and not 2 for each
    tile of the grid. Slices and concatenations run in every engine, padding around the edge
    does not.

    Args:
        operator: what is emitted.
        graph: receives the nodes.
        x: a value of shape (n, n, c_in, batch).
        emit_inner: adds the nodes of the inner operator, from (t, t, c_in, tiles * batch) to
            (t, t, c_out, tiles * batch).

    Returns:
        A value of shape (n, n, c_out, batch).
    """
    for axis in (1, 0):
        x = _cut(operator, graph, x, axis)
    y = emit_inner(x)
    n, t, c = operator.grid, operator.tile, operator.out_channels
    for axis, rows in ((0, t), (1, n)):
        y = graph.reshape(y, rows, t, c, operator.count, -1)
        cuts = enumerate(operator.kept)
        tiles = [graph.slices(y, {axis: cut, BATCH: slice(i, i + 1)}) for i, cut in cuts]
        y = graph.concatenate(tiles, axis)
    return graph.reshape(y, n, n, c, -1)


def _cut(operator: TiledConv, graph: GraphBuilder, x: str, axis: int) -> str:
    """Cut one axis into tiles and stack them along the batch, the first tile first."""
    n, t, reach, starts = operator.grid, operator.tile, operator.kernel_size // 2, operator.edges
    before = graph.slices(x, {axis: slice(n - reach, n)})
    after = graph.slices(x, {axis: slice(0, starts[-2] - reach + t - n)})
    # The border in front moves what tile i reads from edges[i] - reach to edges[i].
    wrapped = graph.concatenate([before, x, after], axis)
    tiles = [graph.slices(wrapped, {axis: slice(start, start + t)}) for start in starts[:-1]]
    return graph.concatenate(tiles, BATCH)
