"""What the nodes of a graph cost: multiplications, bytes moved, launches."""

import math
from dataclasses import dataclass

import onnx

from lipdeploy.exporters.onnx_layer import INPUT, input_shape, layer_graph
from lipdeploy.exporters.onnx_shapes import Shape, value_shapes
from lipdeploy.exporters.onnx_spectral import STRIPS
from lipdeploy.exporters.plan import Choice, LayerShape, Target

FREE = {"Reshape"}
"""Nodes that move nothing."""


@dataclass(frozen=True)
class Machine:
    """Rates of an engine on a device; the defaults are ONNX Runtime's on 2 cores of a server.

    Attributes:
        products: multiplications and additions a second of a large float32 matrix product.
        narrow: columns of a product at which half of that is reached.
        panel: columns that are worked on at a time: fewer, but for one, take as long.
        rows: multiplications and additions a second where one row at a time meets a stack,
        strips: and where the matrices of the stack are no wider than strips of channels.
        short: length of sums at which half of either is reached.
        weights: bytes a second of weights in stacks, read from memory.
        packed: of a single matrix on the right, which the engine packs when it loads it.
        values: bytes a second of everything else, read and written.
        launch: seconds of a node that does nothing.
    """

    products: float = 90e9
    narrow: float = 10.0
    panel: int = 16
    rows: float = 9e9
    strips: float = 30e9
    short: float = 12.0
    weights: float = 23e9
    packed: float = 27e9
    values: float = 25e9
    launch: float = 4e-6


@dataclass(frozen=True)
class Usage:
    """What a graph does.

    Attributes:
        macs: multiplications with an addition.
        weight_bytes: of the constants that products read.
        nodes: how many do something.
        seconds: by the model.
    """

    macs: int
    weight_bytes: int
    nodes: int
    seconds: float


def usage(model: onnx.ModelProto, inputs: dict[str, Shape], machine: Machine) -> Usage:
    """The cost of a prepared graph for inputs of these shapes."""
    shapes = value_shapes(model, inputs)
    constants = {t.name: 4 * math.prod(t.dims) for t in model.graph.initializer}
    macs = read = nodes = 0
    seconds = 0.0
    for node in model.graph.node:
        if node.op_type in FREE:
            continue
        nodes += 1
        seconds += machine.launch
        if node.op_type == "MatMul":
            left, right, out = (shapes[name] for name in (*node.input, *node.output))
            macs += math.prod(out) * left[-1]
            read += sum(constants.get(name, 0) for name in node.input)
            seconds += max(
                _product_seconds(left, right, out, machine),
                _moved(node, shapes, constants, machine),
            )
        else:
            seconds += _moved(node, shapes, constants, machine)
    return Usage(macs, read, nodes, seconds)


def _product_seconds(left: Shape, right: Shape, out: Shape, machine: Machine) -> float:
    columns = max(out[-1], out[-2]) if len(right) == 2 else out[-1]
    # A product with one column is another algorithm than one with some.
    if 1 < columns < machine.panel:
        return _product_seconds(left, right, (*out[:-1], machine.panel), machine)
    is_row = len(right) > 2 and out[-2] == 1
    rate = machine.products * columns / (columns + machine.narrow)
    if is_row:
        rate = machine.strips if out[-1] <= max(STRIPS) else machine.rows
    return math.prod(out) * (left[-1] + machine.short) / rate


def _moved(
    node: onnx.NodeProto, shapes: dict[str, Shape], constants: dict[str, int], machine: Machine
) -> float:
    names = [name for name in (*node.input, *node.output) if name not in constants]
    values = 4 * sum(math.prod(shapes[name]) for name in names)
    weights = sum(constants.get(name, 0) for name in node.input)
    last = node.input[-1]
    is_packed = node.op_type == "MatMul" and last in constants and len(shapes[last]) == 2
    rate = machine.packed if is_packed else machine.weights
    return values / machine.values + weights / rate


@dataclass(frozen=True)
class CostModel:
    """Seconds of a layer, from its graph.

    Attributes:
        machine: the rates.
    """

    machine: Machine = Machine()

    def usage(self, shape: LayerShape, choice: Choice, target: Target) -> Usage:
        """What a layer does for a batch."""
        model = layer_graph(shape, choice, target)
        return usage(model, {INPUT: input_shape(shape, choice, target.batch)}, self.machine)

    def __call__(self, shape: LayerShape, choice: Choice, target: Target) -> float:
        """Seconds for a batch."""
        return self.usage(shape, choice, target).seconds
