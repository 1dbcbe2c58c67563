"""A thin builder of ONNX graphs: names, constants and the few nodes that the exporters use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lipdeploy.errors import ExportError
from lipdeploy.exporters.onnx_wire import MAX_FIELDS

OPSET = 17
IR_VERSION = 8
NUMBER = "number_"
"""How names of scalars begin; then follows the number, with all digits of float64."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A stored array, or what exact operations make of one.

    Attributes:
        name: of the value in the graph.
        value: what it is, in float32 whatever the graph computes with.
    """

    name: str
    value: NDArray[np.float32]


class GraphBuilder:
    """Collects nodes and constants; every method returns the name of the value it adds.

    Args:
        block: longest sum of a matrix product; longer ones are cut into blocks, whose results are
            added pair by pair. None leaves the order of sums to the engine.
        prepared: casts, transposes and slices of stored arrays are done now, not by nodes, and of
            reshapes in a row only the last one is left. What is computed is the same; a runtime
            then has nothing left to fold.
        most_nodes: more are refused before they are made.

    Attributes:
        dtype: of the numbers that nodes compute with; weights are cast to it, exactly.
    """

    def __init__(
        self,
        block: int | None = None,
        *,
        prepared: bool = False,
        most_nodes: int = MAX_FIELDS,
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._reshaped: dict[str, str] = {}
        self.block, self.prepared, self._most_nodes = block, prepared, most_nodes
        self.dtype: np.dtype[Any] = np.dtype(np.float32)

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:  # noqa: ANN401
        """Add a node with one output."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self._add(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def _add(self, node: onnx.NodeProto) -> None:
        if len(self.nodes) >= self._most_nodes:
            raise ExportError(
                f"a graph of more than {self._most_nodes} nodes; use --form auto, a larger "
                "--longest-sum, or a smaller network"
            )
        self.nodes.append(node)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant under a name of its own, once."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def weight(self, name: str, value: NDArray[Any]) -> Weight:
        """A stored array, cast exactly to `dtype` where it is stored in another one.

        Raises:
            ExportError: if that cannot hold it.
        """
        exact = value.astype(np.float32)
        if not np.array_equal(exact.astype(self.dtype).astype(value.dtype), value):
            raise ExportError(f"{name} is {value.dtype} and does not fit into {self.dtype}")
        if self.prepared:
            return Weight(name, exact)
        stored = self.constant(name, value)
        if value.dtype == self.dtype:
            return Weight(stored, exact)
        return Weight(self.cast(stored), exact)

    def cast(self, x: str, output: str | None = None) -> str:
        """X in `dtype`."""
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        return self.node("Cast", x, output=output, to=kind)

    def operand(self, weight: Weight) -> str:
        """A weight as the input of a node."""
        if not self.prepared:
            return weight.name
        return self.constant(weight.name, weight.value.astype(self.dtype))

    def turned(self, weight: Weight, *permutation: int) -> Weight:
        """A weight with its axes permuted."""
        name = f"turned_{_joined(permutation)}"
        return self._made(
            weight, name, weight.value.transpose(permutation), "Transpose", perm=permutation
        )

    def part(self, weight: Weight, axis: int, cut: slice) -> Weight:
        """A slice of a weight along one axis."""
        start, stop, _ = cut.indices(weight.value.shape[axis])
        value = weight.value[(slice(None),) * axis + (slice(start, stop),)]
        inputs = [[start], [stop], [axis]]
        return self._made(weight, f"part_{axis}_{start}_{stop}", value, "Slice", inputs)

    def reshaped(self, weight: Weight, *shape: int) -> Weight:
        """A weight in another shape."""
        value = weight.value.reshape(shape)
        return self._made(weight, f"shape_{_joined(value.shape)}", value, "Reshape", [value.shape])

    def negated(self, weight: Weight) -> Weight:
        """A weight with its signs changed."""
        return self._made(weight, "negated", -weight.value, "Neg")

    def stacked(self, weights: Sequence[Weight], axis: int) -> Weight:
        """Weights joined along an axis."""
        value = np.concatenate([weight.value for weight in weights], axis=axis)
        name = "+".join(weight.name for weight in weights)
        if self.prepared:
            return Weight(f"{name}.{axis}", value)
        names = [weight.name for weight in weights]
        return Weight(self.node("Concat", *names, axis=axis), value)

    def _made(
        self,
        weight: Weight,
        name: str,
        value: NDArray[np.float32],
        kind: str,
        inputs: Sequence[Sequence[int]] = (),
        **attributes: Any,  # noqa: ANN401
    ) -> Weight:
        """What one exact node makes of a weight, done now if the graph is prepared."""
        if self.prepared:
            return Weight(f"{weight.name}.{name}", value)
        constants = [self.integers(*values) for values in inputs]
        return Weight(self.node(kind, weight.name, *constants, **attributes), value)

    def product(self, x: str, weight: Weight, axis: int) -> str:
        """X @ weight, the sum running over `axis` of x, its last one."""
        rows = weight.value.ndim - 2
        parts = self._cuts(weight.value.shape[rows])
        if len(parts) == 1:
            return self.node("MatMul", x, self.operand(weight))
        pieces = self.split(x, axis, [cut.stop - cut.start for cut in parts])
        weights = [self.operand(self.part(weight, rows, cut)) for cut in parts]
        return self.sum([self.node("MatMul", *pair) for pair in zip(pieces, weights, strict=True)])

    def product_from_left(self, weight: Weight, x: str) -> str:
        """Weight @ x, the sum running over the last axis but one of x; others are broadcast."""
        columns = weight.value.ndim - 1
        parts = self._cuts(weight.value.shape[columns])
        if len(parts) == 1:
            return self.node("MatMul", self.operand(weight), x)
        pieces = self.split(x, -2, [cut.stop - cut.start for cut in parts])
        weights = [self.operand(self.part(weight, columns, cut)) for cut in parts]
        return self.sum([self.node("MatMul", *pair) for pair in zip(weights, pieces, strict=True)])

    def _cuts(self, length: int) -> list[slice]:
        size = self.block or length
        return [slice(start, min(start + size, length)) for start in range(0, length, size)]

    def split(self, x: str, axis: int, sizes: list[int]) -> list[str]:
        """Cut along an axis into parts of these sizes."""
        name = f"split_{len(self.nodes)}"
        parts = [f"{name}_{index}" for index in range(len(sizes))]
        inputs = [x, self.integers(*sizes)]
        self._add(helper.make_node("Split", inputs, parts, name=name, axis=axis))
        return parts

    def sum(self, parts: list[str]) -> str:
        """Add pair by pair, the order that `lipdeploy.rounding.tree_levels` counts."""
        while len(parts) > 1:
            pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
            parts = [self.node("Add", *pair) if len(pair) == 2 else pair[0] for pair in pairs]
        return parts[0]

    def integers(self, *values: int) -> str:
        """A vector of integers."""
        name = "int_" + _joined(values).replace("-", "m")
        return self.constant(name, np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        """A scalar, rounded to `dtype`."""
        kind = "" if self.dtype == np.float32 else f"{self.dtype.name}_"
        return self.constant(f"{NUMBER}{kind}{value!r}", np.array(value).astype(self.dtype))

    def reshape(self, x: str, *shape: int, output: str | None = None) -> str:
        """Reshape; one entry may be -1."""
        whole = self._reshaped.get(x, x) if self.prepared else x
        name = self.node("Reshape", whole, self.integers(*shape), output=output)
        self._reshaped[name] = whole
        return name

    def drop_unused(self, outputs: Sequence[str]) -> None:
        """Forget nodes and constants that no output needs."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: self.constants[name] for name in self.constants if name in needed}

    def transpose(self, x: str, *permutation: int) -> str:
        """Permute the axes."""
        return self.node("Transpose", x, perm=list(permutation))

    def slices(self, x: str, cuts: dict[int, slice]) -> str:
        """Slice along axes, {axis: slice(start, stop)}."""
        starts = self.integers(*(cut.start for cut in cuts.values()))
        stops = self.integers(*(cut.stop for cut in cuts.values()))
        return self.node("Slice", x, starts, stops, self.integers(*cuts))

    def concatenate(self, parts: Sequence[str], axis: int) -> str:
        """Join along an axis."""
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=axis)

    def halves(self, x: str, axis: int, size: int) -> tuple[str, str]:
        """The two halves of an axis of even `size`."""
        half = size // 2
        return self.slices(x, {axis: slice(0, half)}), self.slices(x, {axis: slice(half, size)})


def exact_number(name: str) -> float | None:
    """The number that a constant of `GraphBuilder.number` rounds; None for others."""
    return float(name.rsplit("_", maxsplit=1)[1]) if name.startswith(NUMBER) else None


def _joined(numbers: Sequence[int]) -> str:
    return "_".join(map(str, numbers))
