"""The ONNX nodes of every form of a linear layer."""

from functools import singledispatch

from lipdeploy.errors import ExportError
from lipdeploy.exporters.onnx_graph import GraphBuilder
from lipdeploy.exporters.onnx_grid import Grid, Parts, Wanted, cut, joined, ordered, standard
from lipdeploy.exporters.onnx_spectral import Fused, Separable
from lipdeploy.exporters.onnx_tiles import emit_tiles
from lipdeploy.fourier import offsets
from lipdeploy.operators import DenseMatrix, LinearOperator, PointwiseMatrix
from lipdeploy.spectral import FusedSpectralConv, Spectral, SpectralConv
from lipdeploy.taylor import TaylorConv
from lipdeploy.tiled import TiledConv


def takes_rows(operator: LinearOperator) -> bool:
    """Whether images come to an operator as rows at no cost."""
    return isinstance(operator, Spectral) and operator.has_rows


@singledispatch
def emit_operator(
    operator: LinearOperator, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted
) -> Grid:
    """Add the nodes of a linear operator; what is wanted is given where that is cheaper."""
    raise ExportError(f"the form {operator.form!r} has no ONNX nodes ({prefix}, {x}, {wanted})")


@emit_operator.register
def _(operator: SpectralConv, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted) -> Grid:
    return Separable(operator, graph, x, prefix, wanted).emit()


@emit_operator.register
def _(
    operator: FusedSpectralConv, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted
) -> Grid:
    return Fused(operator, graph, x, prefix, wanted).emit()


@emit_operator.register
def _(operator: PointwiseMatrix, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted) -> Grid:
    """From the left; on a single point as rows of images, where engines pack weights once."""
    n, c_out = operator.grid, operator.out_channels
    matrix = graph.weight(f"{prefix}.matrix", operator.matrix)
    if x.rows:
        parts = Parts(graph, x)
        rows = parts.gather(graph.reshape(parts.name, parts.count * n * n, -1), n * n)
        if parts.is_cells:
            matrix = graph.turned(parts.columns(graph.turned(matrix, 1, 0)), 1, 0)
        value = graph.reshape(rows, n, n, -1, operator.in_channels)
        return Grid((graph.product(value, matrix, axis=-1),), n, c_out, rows=True)
    shares = cut(graph, matrix, 1, 2 if wanted.halves else 1)
    value = standard(graph, x)
    if n == 1:
        rows = graph.transpose(graph.reshape(value, operator.in_channels, -1), 1, 0)
        pieces = [
            graph.reshape(graph.transpose(graph.product(rows, share, axis=1), 1, 0), 1, 1, size, -1)
            for share in shares
            for size in [share.value.shape[1]]
        ]
    else:
        pieces = [graph.product_from_left(graph.turned(share, 1, 0), value) for share in shares]
    return Grid(tuple(pieces), n, c_out)


@emit_operator.register
def _(operator: DenseMatrix, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted) -> Grid:
    n, c_out = operator.grid, operator.out_channels
    matrix = graph.turned(graph.weight(f"{prefix}.matrix", operator.matrix), 1, 0)
    columns = standard(graph, ordered(graph, x, rows=False))
    flat = graph.reshape(columns, operator.matrix.shape[0], -1)
    y = graph.reshape(graph.product_from_left(matrix, flat), n, n, c_out, -1)
    return Grid((y,), n, c_out)


@emit_operator.register
def _(operator: TaylorConv, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted) -> Grid:
    """A product for each tap, so that the engine has no algorithm of convolution to choose."""
    c, n, reach = operator.channels, operator.grid, operator.kernel_size // 2
    first = standard(graph, ordered(graph, x, rows=False))
    missing = c - operator.in_channels
    if missing:
        first = graph.node("Pad", first, graph.integers(0, 0, 0, 0, 0, 0, missing, 0))
    taps = graph.weight(f"{prefix}.taps", operator.taps)
    places = offsets(operator.kernel_size).tolist()
    parts = [graph.part(taps, 0, slice(index, index + 1)) for index in range(len(places))]
    border = graph.integers(reach, reach, 0, 0, reach, reach, 0, 0)
    v = first
    for power in range(operator.degree, 0, -1):
        padded = graph.node("Pad", v, border) if reach else v
        products = []
        for tap, place in zip(parts, places, strict=True):
            rows, columns = (slice(reach + shift, reach + shift + n) for shift in place)
            moved = graph.slices(padded, {0: rows, 1: columns})
            products.append(graph.product_from_left(tap, moved))
        scaled = graph.node("Mul", graph.sum(products), graph.number(1 / power))
        v = graph.node("Add", first, scaled)
    y = graph.node("Mul", v, graph.number(operator.scale))
    kept = graph.slices(y, {2: slice(0, operator.out_channels)})
    return Grid((kept,), n, operator.out_channels)


@emit_operator.register
def _(operator: TiledConv, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted) -> Grid:
    """Tiles are stacked along the batch, the last axis."""

    def inner(tiles: str) -> str:
        tile = Grid((tiles,), operator.tile, operator.in_channels)
        return joined(
            graph, emit_operator(operator.inner, graph, tile, f"{prefix}.inner", Wanted())
        )

    whole = emit_tiles(operator, graph, standard(graph, ordered(graph, x, rows=False)), inner)
    return Grid((whole,), operator.grid, operator.out_channels)
