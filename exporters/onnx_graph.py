"""A thin builder of ONNX graphs: names, constants and the few nodes that the exporters use."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8


class GraphBuilder:
    """Collects nodes and constants; every method returns the name of the value it adds."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:  # noqa: ANN401
        """Add a node with one output."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant under a name of its own, once."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """A stored array, cast exactly to float32 where it is stored in less."""
        stored = self.constant(name, value)
        if value.dtype == np.float32:
            return stored
        return self.node("Cast", stored, to=TensorProto.FLOAT)

    def integers(self, *values: int) -> str:
        """A vector of integers."""
        name = "int_" + "_".join(str(value).replace("-", "m") for value in values)
        return self.constant(name, np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(f"number_{value!r}", np.array(value, dtype=np.float32))

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape; one entry may be -1."""
        return self.node("Reshape", x, self.integers(*shape))

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
