"""The ONNX nodes of every form of a linear layer, on grid-first values."""

from functools import singledispatch
from itertools import pairwise

import numpy as np

from lipdeploy.errors import ExportError
from lipdeploy.exporters.onnx_graph import GraphBuilder
from lipdeploy.exporters.onnx_tiles import emit_tiles
from lipdeploy.fourier import offsets
from lipdeploy.operators import DenseMatrix, LinearOperator, PointwiseMatrix
from lipdeploy.spectral import SpectralConv
from lipdeploy.taylor import TaylorConv
from lipdeploy.tiled import TiledConv


@singledispatch
def emit_operator(operator: LinearOperator, graph: GraphBuilder, x: str, prefix: str) -> str:
    """Add the nodes of a linear operator."""
    raise ExportError(f"the form {operator.form!r} has no ONNX nodes ({prefix}, {x})")


@emit_operator.register
def _(operator: PointwiseMatrix, graph: GraphBuilder, x: str, prefix: str) -> str:
    return graph.product(x, graph.weight(f"{prefix}.matrix", operator.matrix), axis=3)


@emit_operator.register
def _(operator: DenseMatrix, graph: GraphBuilder, x: str, prefix: str) -> str:
    n = operator.grid
    rows = graph.reshape(graph.transpose(x, 2, 0, 1, 3), -1, operator.matrix.shape[0])
    y = graph.product(rows, graph.weight(f"{prefix}.matrix", operator.matrix), axis=1)
    return graph.transpose(graph.reshape(y, -1, n, n, operator.out_channels), 1, 2, 0, 3)


@emit_operator.register
def _(operator: SpectralConv, graph: GraphBuilder, x: str, prefix: str) -> str:
    n, c_in, c_out = operator.grid, operator.in_channels, operator.out_channels
    basis = graph.weight(f"{prefix}.basis", operator.basis)
    transposed = graph.turned(basis, 1, 0)
    rows = graph.product_from_left(basis, graph.reshape(x, n, -1), axis=0)
    columns = graph.product_from_left(basis, graph.reshape(rows, n, n, -1), axis=1)
    y = _SpectralNodes(operator, graph, prefix).apply(graph.reshape(columns, n, n, -1, c_in))
    back = graph.product_from_left(transposed, graph.reshape(y, n, n, -1), axis=1)
    result = graph.product_from_left(transposed, graph.reshape(back, n, -1), axis=0)
    return graph.reshape(result, n, n, -1, c_out)


class _SpectralNodes:
    """The nodes between the two transforms: split, blocks, join (see `SpectralConv.mv`)."""

    def __init__(self, operator: SpectralConv, graph: GraphBuilder, prefix: str) -> None:
        self.operator, self.graph, self.prefix = operator, graph, prefix
        self.edge, self.interior = operator.fourier.edge, operator.fourier.interior

    def apply(self, x: str) -> str:
        """Coefficients (n, n, batch, c_in) to coefficients (n, n, batch, c_out)."""
        e, c, s = self.operator.fourier.parts
        blocks = self.graph.weight(f"{self.prefix}.real_blocks", self.operator.real_blocks)
        mirror = self.graph.product(self._part(x, e, e), blocks, axis=2)
        if not self.interior:
            return self._cell(mirror, self.edge, self.edge)
        add, subtract = self._add, self._subtract
        cc, ss = self._part(x, c, c), self._part(x, s, s)
        cs, sc = self._part(x, c, s), self._part(x, s, c)
        real = [self._part(x, e, c), self._part(x, c, e), subtract(cc, ss), add(cc, ss)]
        imaginary = [self._part(x, e, s), self._part(x, s, e), add(cs, sc), subtract(sc, cs)]
        y_real, y_imaginary = self._multiply(real, imaginary)
        return self._join(y_real, y_imaginary, mirror)

    def _part(self, x: str, rows: slice, columns: slice) -> str:
        count = (rows.stop - rows.start) * (columns.stop - columns.start)
        part = self.graph.slices(x, {0: rows, 1: columns})
        return self.graph.reshape(part, count, -1, self.operator.in_channels)

    def _add(self, a: str, b: str) -> str:
        return self.graph.node("Add", a, b)

    def _subtract(self, a: str, b: str) -> str:
        return self.graph.node("Sub", a, b)

    def _multiply(self, real: list[str], imaginary: list[str]) -> tuple[str, str]:
        """Both parts stacked along the batch, so that each block is stored and read once."""
        graph, weights = self.graph, self.operator.complex_blocks
        count, c = len(weights), self.operator.out_channels
        parts = [graph.concatenate(real, axis=0), graph.concatenate(imaginary, axis=0)]
        both = graph.concatenate(parts, axis=1)
        blocks = graph.weight(f"{self.prefix}.complex_blocks", weights)
        product = graph.reshape(graph.product(both, blocks, axis=2), count, 2, -1, 2 * c)

        def quarter(part: int, side: int) -> str:
            cuts = {1: slice(part, part + 1), 3: slice(side * c, (side + 1) * c)}
            return graph.reshape(graph.slices(product, cuts), count, -1, c)

        y_real = self._subtract(quarter(0, 0), quarter(1, 1))
        return y_real, self._add(quarter(0, 1), quarter(1, 0))

    def _pieces(self, x: str) -> list[str]:
        e, h = self.edge, self.interior
        ends = np.cumsum([0, e * h, h * e, h * h, h * h]).tolist()
        return [self.graph.slices(x, {0: slice(start, stop)}) for start, stop in pairwise(ends)]

    def _cell(self, x: str, rows: int, columns: int) -> str:
        return self.graph.reshape(x, rows, columns, -1, self.operator.out_channels)

    def _join(self, real: str, imaginary: str, mirror: str) -> str:
        e, h, add, subtract = self.edge, self.interior, self._add, self._subtract
        ec, ce, plus, minus = self._pieces(real)
        es, se, plus_i, minus_i = self._pieces(imaginary)
        cells = [
            [(mirror, e, e), (ec, e, h), (es, e, h)],
            [(ce, h, e), (add(plus, minus), h, h), (subtract(plus_i, minus_i), h, h)],
            [(se, h, e), (add(plus_i, minus_i), h, h), (subtract(minus, plus), h, h)],
        ]
        rows = [
            self.graph.concatenate([self._cell(*cell) for cell in row], axis=1) for row in cells
        ]
        return self.graph.concatenate(rows, axis=0)


@emit_operator.register
def _(operator: TaylorConv, graph: GraphBuilder, x: str, prefix: str) -> str:
    """A product for each tap, so that the engine has no algorithm of convolution to choose."""
    c, n, reach = operator.channels, operator.grid, operator.kernel_size // 2
    missing = c - operator.in_channels
    if missing:
        x = graph.node("Pad", x, graph.integers(0, 0, 0, 0, 0, 0, 0, missing))
    taps = graph.turned(graph.weight(f"{prefix}.taps", operator.taps), 0, 2, 1)
    places = offsets(operator.kernel_size).tolist()
    parts = [graph.part(taps, 0, slice(index, index + 1)) for index in range(len(places))]
    border = graph.integers(reach, reach, 0, 0, reach, reach, 0, 0)
    v = x
    for power in range(operator.degree, 0, -1):
        padded = graph.node("Pad", v, border) if reach else v
        products = []
        for tap, place in zip(parts, places, strict=True):
            rows, columns = (slice(reach + shift, reach + shift + n) for shift in place)
            moved = graph.slices(padded, {0: rows, 1: columns})
            products.append(graph.product(moved, tap, axis=3))
        scaled = graph.node("Mul", graph.sum(products), graph.number(1 / power))
        v = graph.node("Add", x, scaled)
    y = graph.node("Mul", v, graph.number(operator.scale))
    return graph.slices(y, {3: slice(0, operator.out_channels)})


@emit_operator.register
def _(operator: TiledConv, graph: GraphBuilder, x: str, prefix: str) -> str:
    """Tiles are stacked along the last axis, so the batch goes there and back."""

    def swapped(value: str) -> str:
        return graph.transpose(value, 0, 1, 3, 2)

    def inner(tiles: str) -> str:
        return swapped(emit_operator(operator.inner, graph, swapped(tiles), f"{prefix}.inner"))

    return swapped(emit_tiles(operator, graph, swapped(x), inner))
