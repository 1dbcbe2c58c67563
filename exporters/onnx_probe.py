"""Probing an engine: the products of its own graph, at their own shapes, on inputs that tell.

*Order* (the permutation test): a product Y = A B is computed as it stands and with the rows of A
and the columns of B permuted, and the matrices of a stack that meet the same vectors in turn. Where
every sum is added in the same order wherever it stands, the result is the permuted one bit for bit;
another order would round differently in some of thousands of sums.

*Precision*: where a single term of each sum is not zero, a product is one multiplication, and
float32 gives it within 2^-24; operands cut to 11 bits would be wrong in the fourth digit.

A pass is evidence for the very shapes and the machine that are used, not a proof; that is why
the assumptions are named with every radius that rests on them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lipdeploy.arithmetic import FLOAT32
from lipdeploy.exporters.onnx_graph import IR_VERSION, OPSET
from lipdeploy.exporters.onnx_shapes import value_shapes
from lipdeploy.runtimes.onnx import OnnxRuntime

Array = NDArray[Any]

SEED = 0


def keeps_order(runtime: OnnxRuntime, data: bytes, batch: int) -> bool:
    """Whether all sums of each matrix product of a model are added in the same order.

    Args:
        runtime: whose device and options are used.
        data: a prepared model: one operand of every product is a constant.
        batch: number of images.
    """
    generator, probe, pairs = np.random.default_rng(SEED), _Probe(), []
    for operand in _operands(data, batch):
        value = generator.normal(size=operand.shape).astype(np.float32)
        left, right = operand.sides(value)
        plain = probe.add(left, right, is_left=operand.is_left)
        moved = replace(operand, constant=_in_turn(operand.constant, operand.shared))
        rows, columns = (
            {-2: generator.permutation(left.shape[-2])},
            {-1: generator.permutation(right.shape[-1])},
        )
        sides = (_permuted(*pair) for pair in zip(moved.sides(value), (rows, columns), strict=True))
        permuted = probe.add(*sides, is_left=operand.is_left)
        pairs.append((plain, permuted, operand.shared, rows | columns))
    found = probe.run(runtime)
    return all(
        np.array_equal(_permuted(_in_turn(found[plain], shared), orders), found[permuted])
        for plain, permuted, shared, orders in pairs
    )


def _in_turn(array: Array, axes: Sequence[int]) -> Array:
    """An array with each index along all these axes together replaced by the one before.

    One cycle: where nothing changes but the place, all matrices of a stack are alike.
    """
    if not axes:
        return array
    first = range(len(axes))
    front = np.moveaxis(array, axes, first)
    flat = front.reshape(-1, *front.shape[len(axes) :])
    return np.moveaxis(np.roll(flat, 1, axis=0).reshape(front.shape), first, axes)


def _permuted(array: Array, orders: Mapping[int, Array]) -> Array:
    """An array with its axes, counted from the end, in other orders."""
    for axis, order in orders.items():
        array = array.take(order, axis)
    return array


def keeps_precision(runtime: OnnxRuntime, data: bytes, batch: int) -> bool:
    """Whether each matrix product of a model multiplies as precisely as float32.

    Args:
        runtime: whose device and options are used.
        data: a prepared model: one operand of every product is a constant.
        batch: number of images.
    """
    generator, probe, expected = np.random.default_rng(SEED), _Probe(), {}
    for operand in _operands(data, batch):
        value = np.zeros(operand.shape, dtype=np.float32)
        # One number for each sum: along the last axis of a left operand, the last but one of a
        # right one.
        axis = -2 if operand.is_left else -1
        single = np.moveaxis(value, axis, -1)
        chosen = generator.integers(single.shape[-1], size=(*single.shape[:-1], 1))
        numbers = generator.uniform(1, 2, size=chosen.shape).astype(np.float32)
        np.put_along_axis(single, chosen, numbers, axis=-1)
        left, right = operand.sides(value)
        name = probe.add(left, right, is_left=operand.is_left)
        expected[name] = left.astype(np.float64) @ right.astype(np.float64)
    found = probe.run(runtime)
    limit = 2 * FLOAT32.unit_roundoff
    return all(
        bool(np.all(np.abs(found[name] - exact) <= limit * np.abs(exact) + FLOAT32.smallest_normal))
        for name, exact in expected.items()
    )


@dataclass(frozen=True, eq=False)
class _Operand:
    """A product of the graph: its constant, and the shape of the other side."""

    constant: Array
    shape: tuple[int, ...]
    is_left: bool

    @property
    def shared(self) -> list[int]:
        """Axes of the stack, from the end, along which the same vectors meet several matrices."""
        sizes = self.constant.shape
        vectors = (1,) * (len(sizes) - len(self.shape)) + self.shape
        stack = range(-len(sizes), -2)
        return [axis for axis in stack if sizes[axis] > 1 and vectors[axis] == 1]

    def sides(self, value: Array) -> tuple[Array, Array]:
        """Left and right operand, the constant where it belongs."""
        return (self.constant, value) if self.is_left else (value, self.constant)


def _operands(data: bytes, batch: int) -> Iterator[_Operand]:
    """The products of a model that differ in side, constant or shape."""
    model = onnx.load_model_from_string(data)
    shapes = _shapes(model, batch)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    seen = set()
    for node in model.graph.node:
        if node.op_type != "MatMul":
            continue
        left, right = node.input
        is_left = left in weights
        name, other = (left, right) if is_left else (right, left)
        key = (name, shapes[other])
        if key not in seen:
            seen.add(key)
            # A constant that happens to be all zero would pass any test.
            constant = weights[name] if np.any(weights[name]) else np.ones_like(weights[name])
            yield _Operand(constant, shapes[other], is_left)


def _shapes(model: onnx.ModelProto, batch: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all values at a batch size."""
    (pixels,) = model.graph.input
    sides = [d.dim_value for d in pixels.type.tensor_type.shape.dim][1:]
    return value_shapes(model, {pixels.name: (batch, *sides)})


class _Probe:
    """A model of matrix products, and its inputs."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: dict[str, Array] = {}
        self._outputs: list[str] = []

    def add(self, left: Array, right: Array, *, is_left: bool) -> str:
        """Add left @ right, the left side or the right one a constant; gives its name."""
        name = f"product_{len(self._nodes)}"
        sides = [f"{name}_left", f"{name}_right"]
        constant, value = sides if is_left else reversed(sides)
        operands = (left, right) if is_left else (right, left)
        stored, given = (np.ascontiguousarray(operand) for operand in operands)
        self._constants.append(numpy_helper.from_array(stored, constant))
        self._inputs[value] = given
        self._nodes.append(helper.make_node("MatMul", sides, [name]))
        self._outputs.append(name)
        return name

    def run(self, runtime: OnnxRuntime) -> dict[str, Array]:
        """All products, by name."""
        if not self._nodes:
            return {}
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self._nodes,
            "probe",
            [value(name, TensorProto.FLOAT, a.shape) for name, a in self._inputs.items()],
            [value(name, TensorProto.FLOAT, None) for name in self._outputs],
            self._constants,
        )
        imports = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
        session = runtime.same_device(bytes(model.SerializeToString()))
        results = session.outputs(self._outputs, self._inputs)
        return dict(zip(self._outputs, results, strict=True))
