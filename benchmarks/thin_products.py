"""How fast libraries multiply blocks of weights with one image: `make thin-products`.

With one image an engine reads each weight once and multiplies it once or twice, so that memory is
the limit. The blocks are those of the layers of LipConvNet-5 with 32 channels. Each product is
measured over as many sets of weights in turn as `STREAM_BYTES` holds: most come from memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnxruntime
import openvino
import torch
from inference.results import describe_machine
from inference.timing import STREAM, STREAM_BYTES, cpu_functions, turn
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from openvino import opset13
from rich.console import Console
from rich.table import Table

from lipdeploy.exporters.onnx_spectral import STRIPS

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Blocks:
    """The blocks of one layer: square, real or a complex block's real and imaginary parts.

    Attributes:
        count: of blocks.
        side: of each.
        vectors: that each is multiplied by: two where it is a part of a complex block.
    """

    count: int
    side: int
    vectors: int = 2

    @property
    def bytes(self) -> int:
        """Of the layer's weights."""
        return 4 * self.count * self.side**2


LAYERS = (
    Blocks(256, 128),
    Blocks(64, 256),
    Blocks(16, 512),
    Blocks(4, 1024, 1),
    Blocks(1, 2048, 1),
)
"""All but the first, which has a five-hundredth of the weights."""


@dataclass(frozen=True)
class Layout:
    """Where vectors stand.

    Attributes:
        name: for people.
        vectors: how many each block is multiplied by.
        left: whether the weights stand on the left.
        alone: whether each block is a product of its own, a matrix, which libraries may pack.
        strip: columns of a strip, if each vector meets blocks strip by strip; 0 for whole blocks.
    """

    name: str
    vectors: int
    left: bool
    alone: bool = False
    strip: int = 0

    def shape(self, layer: Blocks) -> tuple[int, ...]:
        """Of the vectors of all blocks, or of one."""
        if self.strip:
            return layer.count, self.vectors, 1, layer.side
        ends = (layer.side, self.vectors) if self.left else (self.vectors, layer.side)
        return ends if self.alone else (layer.count, *ends)

    def operands(self, weights: list[Array]) -> list[Array]:
        """Of the products of several sets of blocks."""
        if self.strip:
            return [self._strips(blocks) for blocks in weights]
        return [block for blocks in weights for block in blocks] if self.alone else weights

    def _strips(self, blocks: Array) -> Array:
        count, n, m = blocks.shape
        cut = blocks.reshape(count, n, m // self.strip, self.strip).transpose(2, 0, 1, 3)
        return np.ascontiguousarray(cut)[:, :, None]


LAYOUTS = (
    Layout("W x", 1, left=True),
    Layout("W (re, im)", 2, left=True),
    Layout("x W", 1, left=False),
    Layout("(re, im) W", 2, left=False),
    Layout("x W, one by one", 1, left=False, alone=True),
    Layout("(re, im) W, one by one", 2, left=False, alone=True),
    *(
        Layout(f"{name} W, strips of {width}", vectors, left=False, strip=width)
        for width in STRIPS
        for name, vectors in (("x", 1), ("re, im", 2))
    ),
)
"""A complex block's parts are multiplied by two vectors, a real block by one."""


def in_torch(weights: list[Array], layout: Layout, x: Array) -> Callable[[], object]:
    """Products by torch.matmul."""
    right, blocks = torch.from_numpy(x), [torch.from_numpy(w) for w in weights]
    if layout.left:
        return lambda: [torch.matmul(w, right) for w in blocks]
    return lambda: [torch.matmul(right, w) for w in blocks]


def in_onnxruntime(weights: list[Array], layout: Layout, x: Array) -> Callable[[], object]:
    """Products in a graph of MatMul nodes."""
    names = [f"w{index}" for index in range(len(weights))]
    nodes = [
        helper.make_node("MatMul", [name, "x"] if layout.left else ["x", name], [f"y{name}"])
        for name in names
    ]
    nodes.append(helper.make_node("Sum", [f"y{name}" for name in names], ["y"]))
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    stored = [numpy_helper.from_array(w, name) for w, name in zip(weights, names, strict=True)]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": x})


def in_openvino(weights: list[Array], layout: Layout, x: Array) -> Callable[[], object]:
    """Products in a model of MatMul nodes."""
    parameter = opset13.parameter(x.shape, np.float32)
    stored = [opset13.constant(w) for w in weights]
    products = [
        opset13.matmul(*((w, parameter) if layout.left else (parameter, w)), False, False)
        for w in stored
    ]
    total = products[0]
    for product in products[1:]:
        total = opset13.add(total, product)
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = (
        openvino.Core()
        .compile_model(openvino.Model([total], [parameter]), "CPU", hints)
        .create_infer_request()
    )
    request.set_input_tensor(openvino.Tensor(x))
    return request.infer


LIBRARIES = {"torch": in_torch, "ONNX Runtime": in_onnxruntime, "OpenVINO": in_openvino}


def rates(layer: Blocks) -> Iterator[tuple[str, Layout, float]]:
    """Bytes of weights a second, of each library in each layout."""
    draw = np.random.default_rng(0)
    shape = (layer.count, layer.side, layer.side)
    sets = STREAM_BYTES // layer.bytes
    weights = [draw.standard_normal(shape, dtype=np.float32) for _ in range(sets)]
    for library, products in LIBRARIES.items():
        for layout in LAYOUTS:
            x = draw.standard_normal(layout.shape(layer), dtype=np.float32)
            run = products(layout.operands(weights), layout, x)
            run()
            yield library, layout, sets * layer.bytes / turn(run)


def main() -> None:
    """Print the table, and what reading all weights would take at the best rates."""
    print(describe_machine())
    found = {layer: {(name, way): rate for name, way, rate in rates(layer)} for layer in LAYERS}
    columns = (f"{layer.count} of {layer.side}" for layer in LAYERS)
    table = Table("library", "product", *columns, title="Gigabytes of weights a second, one image")
    for library in LIBRARIES:
        for layout in LAYOUTS:
            cells = (f"{found[layer][library, layout] / 1e9:.1f}" for layer in LAYERS)
            table.add_row(library, layout.name, *cells)
    console = Console(width=110)
    console.print(table)
    best = sum(layer.bytes / best_rate(layer, found[layer]) for layer in LAYERS)
    whole = sum(layer.bytes for layer in LAYERS)
    read = STREAM_BYTES / turn(cpu_functions()[STREAM])
    console.print(
        f"The {whole / 1e6:.0f} MB of LipConvNet-5 with 32 channels: {1e3 * best:.2f} ms at the "
        "best rate of each layer, with as many vectors as it has, "
        f"{1e3 * whole / read:.2f} ms at the {read / 1e9:.1f} GB/s of summing numbers."
    )


def best_rate(layer: Blocks, found: dict[tuple[str, Layout], float]) -> float:
    """Of products with as many vectors as the layer's blocks are multiplied by."""
    return max(rate for (_, layout), rate in found.items() if layout.vectors == layer.vectors)


if __name__ == "__main__":
    main()
