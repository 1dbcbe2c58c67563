"""The ONNX nodes of the spectral forms.

Products with blocks and transforms come from the left, on values of shape (..., channels, batch),
so that the only copy is one transposition where channels come in parts; weights, the larger
operand, are read once and never rearranged by an engine.

Layers for few images hold them as rows, (..., batch, channels), and multiply blocks from the right,
one by one, or all at once by one image at a time; see `lipdeploy.spectral.Products`.
"""

from dataclasses import replace

from lipdeploy.exporters.onnx_graph import GraphBuilder, Weight
from lipdeploy.exporters.onnx_grid import (
    PARITY,
    Grid,
    Layout,
    Parts,
    Wanted,
    cut,
    ordered,
)
from lipdeploy.spectral import Spectral, SpectralConv

STRIPS = (64, 32)
"""Channels of a strip, best first: single rows meet narrow blocks up to twice as fast as wide ones;
see `benchmarks/thin_products.py`."""
SHORT = 64
"""Sums that are cut into pieces shorter than this are too many products for strips."""


class _Spectral:
    """What both forms share: the products with blocks."""

    def __init__(
        self, operator: Spectral, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted
    ) -> None:
        self.graph, self.n, self.copies = graph, operator.grid, operator.copies
        self.edge, self.interior = operator.fourier.edge, operator.fourier.interior
        self.c_out, self.parity = operator.out_channels, wanted.parity
        self.products, self.has_rows = operator.products, operator.has_rows
        layout: Layout = "parity" if self.parity else "standard"
        width = self._strip_width(operator)
        self.image = Grid((), self.n, self.c_out, layout, self.has_rows, width)
        self.width, self.strips = width, self.image.strips
        # A node more costs few images more than a copy.
        self.pieces = 2 if wanted.halves and not self.has_rows else 1
        self.parts = Parts(graph, ordered(graph, x, rows=self.has_rows))
        self.weights = {
            name: graph.weight(f"{prefix}.{name}", array)
            for name, array in operator.weights().items()
        }

    def _is_cut_short(self, length: int) -> bool:
        """Whether sums of a length are cut into short pieces."""
        block = self.graph.block
        return block is not None and block < min(length, SHORT)

    def _strip_width(self, operator: Spectral) -> int | None:
        """Of strips of output channels; None for no strips."""
        length, c_out = operator.copies * operator.in_channels, operator.out_channels
        if operator.products != "vectors" or self._is_cut_short(length):
            return None
        return next((width for width in STRIPS if c_out % (2 * width) == 0), None)

    def real_products(self, x: str) -> list[str]:
        """Real blocks times (count, c_in, batch), one value (count, c, batch) a piece.

        Strips come first, if there are any.
        """
        graph, blocks = self.graph, self.parts.columns(self.weights["real_blocks"])
        if self.has_rows:
            count, c_out, c_in = blocks.value.shape
            return [self._products_of_rows(x, 1, graph.reshaped(blocks, count, 1, c_out, c_in))]
        shares = cut(graph, blocks, 1, self.pieces)
        return [graph.product_from_left(share, x) for share in shares]

    def complex_products(self, x: str, cut_from: int, count: int) -> list[str]:
        """Complex blocks times (2 count, c_in, batch), one value for each piece.

        With one copy its axes are (count, part, side, c, batch), else (count, part, c, batch); or
        (.., batch, c). Strips come first, if there are any.
        """
        graph, stored = self.graph, self.weights["complex_blocks"]
        if count != len(stored.value):
            stored = graph.part(stored, 0, slice(cut_from, cut_from + count))
        blocks = self.parts.columns(stored)
        channels = blocks.value.shape[3]
        if self.has_rows:
            return [self._complex_products_of_rows(x, blocks)]
        products = []
        for share in cut(graph, blocks, 2, self.pieces):
            rows = 2 * share.value.shape[2]
            if self.copies == 2:
                taken, weight = graph.reshape(x, count, 2 * channels, -1), self._embedding(share)
            else:
                taken = graph.reshape(x, count, 2, channels, -1)
                weight = graph.reshaped(share, count, 1, rows, channels)
            products.append(graph.product_from_left(weight, taken))
        return products

    def _complex_products_of_rows(self, x: str, blocks: Weight) -> str:
        """As `complex_products`, of rows, in one piece."""
        graph, (count, _, c_out, channels) = self.graph, blocks.value.shape
        if self.copies == 1:
            return self._products_of_rows(graph.reshape(x, count, -1, channels), 2, blocks)
        parts = graph.transpose(graph.reshape(x, count, 2, -1, channels), 0, 2, 1, 3)
        rows = graph.reshape(parts, count, -1, 2 * channels)
        embedded = graph.reshaped(self._embedding(blocks), count, 2, c_out, 2 * channels)
        return self._products_of_rows(rows, 1, embedded)

    def _products_of_rows(self, x: str, parts: int, blocks: Weight) -> str:
        """Rows (count, parts * batch, n) times blocks (count, sides, m, n).

        (count, parts, sides, batch, m), or sides before parts: `lipdeploy.spectral.sides` makes no
        difference between them.
        """
        graph, (count, sides, m, n) = self.graph, blocks.value.shape
        if self.width is not None:
            return self._products_in_strips(x, blocks, self.width)
        whole = graph.reshaped(blocks, count, sides * m, n)
        if self.products == "vectors":
            found = self._products_of_vectors(x, whole)
        else:
            turned = graph.turned(whole, 0, 2, 1)
            matrices = [
                graph.reshaped(graph.part(turned, 0, slice(index, index + 1)), n, sides * m)
                for index in range(count)
            ]
            rows = graph.split(x, 0, [1] * count) if count > 1 else [x]
            pairs = zip(rows, matrices, strict=True)
            found = graph.concatenate([graph.product(*pair, axis=-1) for pair in pairs], axis=0)
        if sides == 1:
            return found
        return graph.transpose(graph.reshape(found, count * parts, -1, sides, m), 0, 2, 1, 3)

    def _products_of_vectors(self, x: str, blocks: Weight) -> str:
        """Rows (count, rows, n) times blocks (count, m, n), one row at a time."""
        graph, (count, m, n) = self.graph, blocks.value.shape
        if self._is_cut_short(n):
            # Pieces of a long sum are added faster from the left, where each is one run of numbers.
            vectors = graph.reshape(x, count, -1, n, 1)
            return graph.product_from_left(graph.reshaped(blocks, count, 1, m, n), vectors)
        turned = graph.reshaped(graph.turned(blocks, 0, 2, 1), count, 1, n, m)
        return graph.product(graph.reshape(x, count, -1, 1, n), turned, axis=-1)

    def _products_in_strips(self, x: str, blocks: Weight, width: int) -> str:
        """As `_products_of_rows`, one row and one strip at a time, the strips first."""
        graph, (count, sides, m, n) = self.graph, blocks.value.shape
        strips = graph.reshaped(blocks, count, sides, m // width, width, n)
        turned = graph.turned(strips, 2, 0, 1, 4, 3)
        stack = graph.reshaped(turned, m // width, count, sides, 1, n, width)
        return graph.product(graph.reshape(x, count, 1, -1, 1, n), stack, axis=-1)

    def _embedding(self, blocks: Weight) -> Weight:
        """(count, 2, m, n) as `lipdeploy.spectral.embeddings`, (count, 2 m, 2 n)."""
        graph, (count, _, m, n) = self.graph, blocks.value.shape
        halves = (graph.part(blocks, 1, slice(part, part + 1)) for part in range(2))
        real, imaginary = (graph.reshaped(half, count, m, n) for half in halves)
        upper = graph.stacked([real, graph.negated(imaginary)], axis=2)
        return graph.stacked([upper, graph.stacked([imaginary, real], axis=2)], axis=1)

    def spread(self, columns: Weight) -> Weight:
        """Columns (frequency, part) as they meet the products; see `lipdeploy.spectral.sides`."""
        if self.copies == 2:
            return columns
        graph, rows = self.graph, len(columns.value)
        pairs = graph.reshaped(columns, rows, -1, 2)
        halves = (graph.part(pairs, 2, slice(part, part + 1)) for part in range(2))
        real, imaginary = halves
        spread = graph.stacked([real, imaginary, imaginary, graph.negated(real)], axis=2)
        return graph.reshaped(spread, rows, -1)

    def result(self, pieces: list[str]) -> Grid:
        """The pieces of (n, n, c, batch), or of what `parity` asks for."""
        n, m, c = self.n, self.n // 2, self.c_out // self.pieces
        grid = (2, 2, m, m) if self.parity else (n, n)
        shape = (*self.strips, *grid, *self.image.tail(c))
        reshaped = tuple(self.graph.reshape(piece, *shape) for piece in pieces)
        return replace(self.image, pieces=reshaped)


class Separable(_Spectral):
    """`SpectralConv`: a transform of the rows, then one of the columns, and back."""

    def __init__(
        self, operator: SpectralConv, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted
    ) -> None:
        super().__init__(operator, graph, x, prefix, wanted)
        basis = self.weights["basis"]
        self.edge_rows = graph.part(basis, 0, slice(0, self.edge))
        self.inner_rows = graph.part(basis, 0, slice(self.edge, self.n))

    def emit(self) -> Grid:
        """All nodes."""
        inner, edge, mirror = self._analyse()
        h, n, e = self.interior, self.n, self.edge
        products = zip(
            self.complex_products(inner, 0, h * n),
            self.complex_products(edge, h * n, e * h),
            self.real_products(mirror),
            strict=True,
        )
        return self.result([self._synthesise(*piece) for piece in products])

    def _analyse(self) -> tuple[str, str, str]:
        """Coefficients at the inner rows, (2 h n, c, batch), at the edge rows, and real ones."""
        graph, q, n, e, h = self.graph, self.parts.count, self.n, self.edge, self.interior
        x = graph.reshape(self.parts.name, q, n, -1)
        rows = graph.reshape(graph.product_from_left(self.inner_rows, x), q * h, 2 * n, -1)
        inner = graph.product_from_left(self.weights["phases"], rows)
        edge = graph.reshape(graph.product_from_left(self.edge_rows, x), q * e, n, -1)
        crossed = graph.product_from_left(self.inner_rows, edge)
        mirror = graph.product_from_left(self.edge_rows, edge)
        gather = self.parts.gather
        return gather(inner, 2 * h * n), gather(crossed, 2 * e * h), gather(mirror, e * e)

    def _synthesise(self, inner: str, edge: str, mirror: str) -> str:
        graph, n, e, h, first = self.graph, self.n, self.edge, self.interior, self.strips
        j = 2 if self.parity else 1
        phases, across, back = (
            graph.turned(weight, 1, 0)
            for weight in (self.weights["phases"], self.inner_rows, self.edge_rows)
        )
        rows = graph.product_from_left(
            self._columns(self.spread(phases), 2),
            graph.reshape(inner, *first, 1, h, 4 * n // self.copies, -1),
        )
        crossed = graph.product_from_left(
            self._columns(self.spread(across), 1),
            graph.reshape(edge, *first, 1, e, 4 * h // self.copies, -1),
        )
        own = graph.product_from_left(
            self._columns(back, 1), graph.reshape(mirror, *first, 1, e, e, -1)
        )
        edges = graph.node("Add", crossed, own)
        inner_sum = graph.product_from_left(
            self._rows(across), graph.reshape(rows, *first, j, 2 * h, -1)
        )
        edge_sum = graph.product_from_left(self._rows(back), graph.reshape(edges, *first, j, e, -1))
        return graph.node("Add", inner_sum, edge_sum)

    def _columns(self, weight: Weight, parts: int) -> Weight:
        """Rows (part, column) of a synthesis, (1, 1, rows, length); even and odd columns apart."""
        graph, (rows, length) = self.graph, weight.value.shape
        if not self.parity:
            return graph.reshaped(weight, 1, 1, rows, length)
        cells = graph.reshaped(weight, parts, self.n // 2, 2, length)
        return graph.reshaped(graph.turned(cells, 2, 0, 1, 3), 2, 1, rows // 2, length)

    def _rows(self, weight: Weight) -> Weight:
        """Rows of a synthesis, even ones first where parity is wanted."""
        if not self.parity:
            return weight
        graph, (n, length) = self.graph, weight.value.shape
        cells = graph.turned(graph.reshaped(weight, n // 2, 2, length), 1, 0, 2)
        return graph.reshaped(cells, n, length)


class Fused(_Spectral):
    """`FusedSpectralConv`: one transform of the whole grid, and one back."""

    def emit(self) -> Grid:
        """All nodes."""
        graph, n = self.graph, self.n
        mirrors, size = self.edge**2, n * n
        plane, is_mixed = self.weights["plane"], self.interior > 0
        x = graph.reshape(self.parts.name, self.parts.count, size, -1)
        real = graph.part(plane, 0, slice(0, mirrors)) if is_mixed else plane
        mirror = self.parts.gather(graph.product_from_left(real, x), mirrors)
        results = [
            graph.product_from_left(
                self._synthesis(real), graph.reshape(product, *self.strips, mirrors, -1)
            )
            for product in self.real_products(mirror)
        ]
        if is_mixed:
            waves = graph.part(plane, 0, slice(mirrors, size))
            pairs = self.parts.gather(graph.product_from_left(waves, x), size - mirrors)
            back, count = self._synthesis(waves), (size - mirrors) // 2
            products = self.complex_products(pairs, 0, count)
            sums = (
                graph.product_from_left(
                    back, graph.reshape(product, *self.strips, 4 * count // self.copies, -1)
                )
                for product in products
            )
            results = [graph.node("Add", *pair) for pair in zip(sums, results, strict=True)]
        return self.result(results)

    def _synthesis(self, rows: Weight) -> Weight:
        graph, size = self.graph, self.n * self.n
        back = graph.turned(rows, 1, 0)
        if len(rows.value) > self.edge**2:
            back = self.spread(back)
        if not self.parity:
            return back
        m, length = self.n // 2, back.value.shape[1]
        cells = graph.reshaped(back, m, 2, m, 2, 1, length)
        return graph.reshaped(graph.turned(cells, *PARITY), size, length)
