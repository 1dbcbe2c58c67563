"""How fast libraries multiply blocks of weights with one image: `make thin-products`.

With one image an engine reads each weight once and multiplies it twice, so that memory is the
limit. The blocks are those of the layers of LipConvNet-5 with 32 channels. Each product is measured
over several sets of weights in turn, so that they come from memory and not from a cache.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnxruntime
import openvino
import torch
from inference.results import describe_machine
from inference.timing import STREAM, STREAM_BYTES, cpu_functions, seconds_of
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from openvino import opset13
from rich.console import Console
from rich.table import Table

Array = NDArray[np.float32]

SETS = 8
"""Of weights, of at least 64 MB together."""

CALLS = 21

ALL_BYTES = 84e6
"""Weights of the engine of LipConvNet-5 with 32 channels."""


@dataclass(frozen=True)
class Blocks:
    """Equal square blocks.

    Attributes:
        count: of blocks.
        side: of each.
    """

    count: int
    side: int

    @property
    def bytes(self) -> int:
        """Of a set of weights."""
        return 4 * self.count * self.side**2


BLOCKS = (Blocks(128, 128), Blocks(32, 256), Blocks(8, 512), Blocks(4, 1024))


@dataclass(frozen=True)
class Layout:
    """Where vectors stand.

    Attributes:
        name: for people.
        vectors: how many each block is multiplied by.
        left: whether the weights stand on the left.
    """

    name: str
    vectors: int
    left: bool

    def shape(self, blocks: Blocks) -> tuple[int, int, int]:
        """Of the vectors of all blocks."""
        ends = (blocks.side, self.vectors) if self.left else (self.vectors, blocks.side)
        return blocks.count, *ends


LAYOUTS = (
    Layout("W x", 1, left=True),
    Layout("W [re, im]", 2, left=True),
    Layout("x W", 1, left=False),
    Layout("[re, im] W", 2, left=False),
)
"""A complex block needs two vectors for each of its two parts."""


def in_torch(weights: list[Array], layout: Layout, x: Array) -> Callable[[], object]:
    """Products by torch.bmm."""
    right, blocks = torch.from_numpy(x), [torch.from_numpy(w) for w in weights]
    if layout.left:
        return lambda: [torch.bmm(w, right) for w in blocks]
    return lambda: [torch.bmm(right, w) for w in blocks]


def in_onnxruntime(weights: list[Array], layout: Layout, x: Array) -> Callable[[], object]:
    """Products in a graph of MatMul nodes."""
    names = [f"w{index}" for index in range(len(weights))]
    nodes = [
        helper.make_node("MatMul", [name, "x"] if layout.left else ["x", name], [f"y{name}"])
        for name in names
    ]
    nodes.append(helper.make_node("Sum", [f"y{name}" for name in names], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name in "xy"]
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


def median_seconds(function: Callable[[], object]) -> float:
    """Of several calls, after some that are not counted."""
    times = [seconds_of(function) for _ in range(CALLS + 4)]
    return float(np.median(times[4:]))


def rates(blocks: Blocks) -> Iterator[tuple[str, Layout, float]]:
    """Bytes of weights a second, of each library in each layout."""
    draw = np.random.default_rng(0)
    shape = (blocks.count, blocks.side, blocks.side)
    weights = [draw.standard_normal(shape, dtype=np.float32) for _ in range(SETS)]
    for library, products in LIBRARIES.items():
        for layout in LAYOUTS:
            x = draw.standard_normal(layout.shape(blocks), dtype=np.float32)
            yield (
                library,
                layout,
                SETS * blocks.bytes / median_seconds(products(weights, layout, x)),
            )


def main() -> None:
    """Print the table, and what reading all weights would take at the best rates."""
    print(describe_machine())
    found = {
        blocks: {(name, layout): rate for name, layout, rate in rates(blocks)} for blocks in BLOCKS
    }
    columns = (f"{blocks.count} of {blocks.side} x {blocks.side}" for blocks in BLOCKS)
    table = Table("library", "product", *columns, title="Gigabytes of weights a second, one image")
    for library in LIBRARIES:
        for layout in LAYOUTS:
            cells = (f"{found[blocks][library, layout] / 1e9:.1f}" for blocks in BLOCKS)
            table.add_row(library, layout.name, *cells)
    console = Console(width=110)
    console.print(table)
    # Equal bytes of each kind of block, so equal shares of the time.
    best = np.mean([1 / max(found[blocks].values()) for blocks in BLOCKS])
    read = STREAM_BYTES / median_seconds(cpu_functions()[STREAM])
    console.print(
        f"The {ALL_BYTES / 1e6:.0f} MB of LipConvNet-5 with 32 channels: "
        f"{1e3 * ALL_BYTES * best:.2f} ms at the best rate of each kind of block, "
        f"{1e3 * ALL_BYTES / read:.2f} ms at the {read / 1e9:.1f} GB/s of summing numbers."
    )


if __name__ == "__main__":
    main()
