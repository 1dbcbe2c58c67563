"""Write a FrozenNetwork as one ONNX file, node by node, and check it after writing.

The graph takes `pixels` (batch, 3, n, n), float32, 0 ... 255, works in grid-first layout, and gives
`features` (batch, d) and `logits` (batch, classes). Stored arrays keep their names and types;
float16 ones are cast exactly to float32.
"""

from functools import singledispatch
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from lipdeploy import frozen
from lipdeploy.artifact import MANIFEST_KEY, Manifest
from lipdeploy.errors import ExportError
from lipdeploy.exporters.graph import IR_VERSION, OPSET, GraphBuilder
from lipdeploy.heads import Head, LinearHead, MlpHead
from lipdeploy.operators import (
    DenseMatrix,
    LinearOperator,
    PointwiseMatrix,
    SpectralConv,
    TaylorConv,
)

MAX_BYTES = 2 << 30


def build_model(network: frozen.FrozenNetwork, manifest: Manifest) -> onnx.ModelProto:
    """The ONNX model of a network, with the manifest in its metadata."""
    graph = GraphBuilder()
    x = graph.transpose("pixels", 2, 3, 0, 1)
    shape, layer = (network.image_size, 3), 0
    for operation in network.operations:
        x = emit(operation, graph, x, shape, f"layer{layer}")
        layer += isinstance(operation, frozen.Linear)
        shape = operation.shape_after(shape)
    channels_first = graph.transpose(x, 2, 3, 0, 1)
    flat = graph.integers(-1, network.head.features)
    features = graph.node("Reshape", channels_first, flat, output="features")
    emit_head(network.head, graph, features)
    return _model(network, graph, manifest)


def _model(
    network: frozen.FrozenNetwork, graph: GraphBuilder, manifest: Manifest
) -> onnx.ModelProto:
    n, head = network.image_size, network.head
    value = helper.make_tensor_value_info
    proto = helper.make_graph(
        graph.nodes,
        "lipdeploy",
        [value("pixels", TensorProto.FLOAT, ["batch", 3, n, n])],
        [
            value("features", TensorProto.FLOAT, ["batch", head.features]),
            value("logits", TensorProto.FLOAT, ["batch", head.classes]),
        ],
        list(graph.constants.values()),
    )
    model = helper.make_model(
        proto,
        producer_name="lipdeploy",
        producer_version=manifest.versions.get("lipdeploy", ""),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, {MANIFEST_KEY: manifest.to_json()})
    return model


def write_onnx(network: frozen.FrozenNetwork, manifest: Manifest, path: Path) -> None:
    """Write the file atomically.

    Raises:
        ExportError: if it would be larger than 2 GiB or cannot be written.
    """
    size = sum(array.nbytes for array in network.weights().values())
    if size >= MAX_BYTES:
        raise ExportError(
            f"{size / 2**30:.1f} GiB of weights do not fit into one ONNX file (2 GiB); "
            "use a smaller width, or --weights float16"
        )
    model = build_model(network, manifest)
    onnx.checker.check_model(model, full_check=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(model.SerializeToString())
        partial.replace(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)


@singledispatch
def emit(
    operation: frozen.Operation,
    graph: GraphBuilder,
    x: str,
    shape: frozen.Grid,
    prefix: str,
) -> str:
    """Add the nodes of an operation on x of shape (n, n, batch, c), shape = (n, c)."""
    raise ExportError(f"{type(operation).__name__} has no ONNX form ({prefix}, {shape}, {x})")


@emit.register
def _(
    operation: frozen.MaxMin,
    graph: GraphBuilder,
    x: str,
    shape: frozen.Grid,
    prefix: str,
) -> str:
    first, second = graph.halves(x, 3, shape[1])
    parts = [graph.node("Max", first, second), graph.node("Min", first, second)]
    return graph.concatenate(parts, axis=3)


@emit.register
def _(
    operation: frozen.ChannelMax,
    graph: GraphBuilder,
    x: str,
    shape: frozen.Grid,
    prefix: str,
) -> str:
    return graph.node("Max", *graph.halves(x, 3, shape[1]))


@emit.register
def _(
    operation: frozen.SpaceToDepth,
    graph: GraphBuilder,
    x: str,
    shape: frozen.Grid,
    prefix: str,
) -> str:
    n, c = shape
    if n % 2:
        x = graph.node("Pad", x, graph.integers(0, 0, 0, 0, 1, 1, 0, 0))
    m = (n + 1) // 2
    cells = graph.transpose(graph.reshape(x, m, 2, m, 2, -1, c), 0, 2, 4, 5, 1, 3)
    return graph.reshape(cells, m, m, -1, 4 * c)


@emit.register
def _(
    operation: frozen.Linear,
    graph: GraphBuilder,
    x: str,
    shape: frozen.Grid,
    prefix: str,
) -> str:
    bias = operation.bias
    spread = bias if bias.ndim == 1 else bias[:, :, None, :]
    y = emit_operator(operation.operator, graph, x, prefix)
    return graph.node("Add", y, graph.weight(f"{prefix}.bias", spread))


@singledispatch
def emit_operator(operator: LinearOperator, graph: GraphBuilder, x: str, prefix: str) -> str:
    """Add the nodes of a linear operator."""
    raise ExportError(f"the form {operator.form!r} has no ONNX nodes ({prefix}, {x})")


@emit_operator.register
def _(operator: PointwiseMatrix, graph: GraphBuilder, x: str, prefix: str) -> str:
    return graph.node("MatMul", x, graph.weight(f"{prefix}.matrix", operator.matrix))


@emit_operator.register
def _(operator: DenseMatrix, graph: GraphBuilder, x: str, prefix: str) -> str:
    n = operator.grid
    rows = graph.reshape(graph.transpose(x, 2, 0, 1, 3), -1, operator.matrix.shape[0])
    y = graph.node("MatMul", rows, graph.weight(f"{prefix}.matrix", operator.matrix))
    return graph.transpose(graph.reshape(y, -1, n, n, operator.out_channels), 1, 2, 0, 3)


@emit_operator.register
def _(operator: SpectralConv, graph: GraphBuilder, x: str, prefix: str) -> str:
    n, c_in, c_out = operator.grid, operator.in_channels, operator.out_channels
    basis = graph.weight(f"{prefix}.basis", operator.basis)
    transposed = graph.weight(f"{prefix}.basis_transposed", operator.basis.T)
    rows = graph.node("MatMul", basis, graph.reshape(x, n, -1))
    columns = graph.node("MatMul", basis, graph.reshape(rows, n, n, -1))
    y = _SpectralNodes(operator, graph, prefix).apply(graph.reshape(columns, n, n, -1, c_in))
    back = graph.node("MatMul", transposed, graph.reshape(y, n, n, -1))
    result = graph.node("MatMul", transposed, graph.reshape(back, n, -1))
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
        mirror = self.graph.node("MatMul", self._part(x, e, e), blocks)
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
        product = graph.reshape(graph.node("MatMul", both, blocks), count, 2, -1, 2 * c)

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
    c, k = operator.channels, operator.kernel_size
    missing = c - operator.in_channels
    if missing:
        x = graph.node("Pad", x, graph.integers(0, 0, 0, 0, 0, 0, 0, missing))
    images = graph.transpose(x, 2, 3, 0, 1)
    taps = graph.weight(f"{prefix}.taps", operator.taps)
    kernel = graph.reshape(graph.transpose(taps, 1, 2, 0), c, c, k, k)
    v = images
    for power in range(operator.degree, 0, -1):
        product = graph.node("Conv", v, kernel, pads=[k // 2] * 4)
        v = graph.node("Add", images, graph.node("Mul", product, graph.number(1 / power)))
    y = graph.node("Mul", v, graph.number(operator.scale))
    return graph.slices(graph.transpose(y, 2, 3, 0, 1), {3: slice(0, operator.out_channels)})


@singledispatch
def emit_head(head: Head, graph: GraphBuilder, features: str) -> None:
    """Add the nodes from `features` to the output `logits`."""
    raise ExportError(f"{type(head).__name__} has no ONNX form ({features})")


@emit_head.register
def _(head: LinearHead, graph: GraphBuilder, features: str) -> None:
    _affine(graph, features, head, "weight", "bias", output="logits")


@emit_head.register
def _(head: MlpHead, graph: GraphBuilder, features: str) -> None:
    hidden = _affine(graph, features, head, "hidden_weight", "hidden_bias")
    _affine(graph, graph.node("Softplus", hidden), head, "weight", "bias", output="logits")
    graph.constant("head.curvature", head.curvature)


def _affine(
    graph: GraphBuilder, x: str, head: Head, weight: str, bias: str, output: str | None = None
) -> str:
    names = weight, bias
    arrays = [graph.weight(f"head.{name}", head.weights()[name]) for name in names]
    return graph.node("Gemm", x, *arrays, output=output, transB=1)
