"""An engine's graph, read from its bytes and run node by node with torch.

Nothing is folded, fused or reordered; products of float32 matrices multiply and add in float32,
whatever the process has allowed to others; and a GPU that cannot be used is an error.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lipdeploy.choices import Device
from lipdeploy.errors import EngineError
from lipdeploy.exporters.onnx_graph import OPSET, exact_number
from lipdeploy.runtimes.torch_nodes import OPERATIONS, TYPES, Operation, Value
from lipdeploy.torch_cuda import cuda_problem

DType = Literal["float32", "float64"]
Numbers = NDArray[Any]
EXACT = ("none", "ieee")
"""Precisions of float32 products that are float32; "none" is torch's default."""

_PRECISION = threading.Lock()
"""Held while the process's precision may be another one than it was."""


@dataclass(frozen=True)
class _Node:
    """A node of the graph.

    Attributes:
        operation: what it computes.
        inputs: names of values.
        outputs: names of values.
        attributes: arguments of the operation.
    """

    operation: Operation
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def run(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Its outputs, by name."""
        result = self.operation(*(values[name] for name in self.inputs), **self.attributes)
        results = result if isinstance(result, tuple) else (result,)
        return dict(zip(self.outputs, results, strict=True))


@dataclass(frozen=True)
class _Step:
    """A node that runs, and the values that nothing needs after it."""

    node: _Node
    over: frozenset[str]


class TorchGraph:
    """A graph on a device.

    Args:
        data: bytes of an ONNX model as `lipdeploy.exporters.onnx` emits it.
        device: "cpu" or "cuda", which is usable.
        dtype: "float32" for the types of the graph itself, "float64" for all numbers in that.

    Raises:
        EngineError: if it is no such model, or has a node that is not known.
    """

    def __init__(self, data: bytes, device: str, dtype: DType) -> None:
        self._device = torch.device(device)
        self._is_double = dtype == "float64"
        model = _parsed(data)
        self._inputs = {value.name: _shape(value) for value in model.graph.input}
        self._outputs = [value.name for value in model.graph.output]
        self._nodes = [_bound(node) for node in model.graph.node]
        self._constants = {t.name: self._constant(t) for t in model.graph.initializer}
        self._plans: dict[tuple[str, ...], list[_Step]] = {}

    def _constant(self, tensor: onnx.TensorProto) -> Value:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int64:
            return tuple(array.tolist())
        number = exact_number(tensor.name)
        if self._is_double and number is not None:
            return torch.tensor(number, dtype=torch.float64, device=self._device)
        # numpy's own types do not have bfloat16; float32 holds all of them exactly.
        exact = torch.tensor(array.astype(np.float32), device=self._device)
        return exact.double() if self._is_double else exact.to(TYPES[tensor.data_type])

    def _tensor(self, array: Numbers) -> torch.Tensor:
        dtype = torch.float64 if self._is_double else torch.float32
        return torch.tensor(array, dtype=dtype, device=self._device)

    def outputs(self, names: Sequence[str], inputs: Mapping[str, Numbers]) -> list[Numbers]:
        """The values of some outputs; see `lipdeploy.runtimes.torch.TorchRuntime.outputs`."""
        self._check(names, inputs)
        with torch.inference_mode(), _float32_products(), _no_autocast(self._device):
            try:
                given = {name: self._tensor(array) for name, array in inputs.items()}
                values = self._run(tuple(names), given)
                return [values[name].cpu().numpy() for name in names]
            # torch raises this and what is derived from it, also where memory is short.
            except RuntimeError as error:
                reason = str(error).split("\n", maxsplit=1)[0]
                raise EngineError(f"the engine failed ({reason}); try a smaller --batch") from error

    def function(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """One output as a function of the graph's only input, which torch can differentiate.

        Takes tensors on the device, in the type of the graph's numbers.
        """
        (given,) = self._inputs

        def apply(x: torch.Tensor) -> torch.Tensor:
            with _float32_products(), _no_autocast(self._device):
                result: torch.Tensor = self._run((name,), {given: x})[name]
            return result

        return apply

    def _check(self, names: Sequence[str], inputs: Mapping[str, Numbers]) -> None:
        unknown = [name for name in names if name not in self._outputs]
        if unknown:
            raise EngineError(f"no output {unknown[0]!r}; expected {', '.join(self._outputs)}")
        given = {name: array.shape for name, array in inputs.items()}
        wanted = self._inputs
        if given.keys() != wanted.keys() or not all(_fits(given[n], wanted[n]) for n in wanted):
            raise EngineError(f"inputs {given}; expected {wanted}, where 0 is any number")

    def _run(self, names: tuple[str, ...], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        if names not in self._plans:
            self._plans[names] = self.plan(names)
        values: dict[str, Value] = {**self._constants, **given}
        for step in self._plans[names]:
            values.update(step.node.run(values))
            for name in step.over:
                del values[name]
        return values

    def plan(self, names: Sequence[str]) -> list[_Step]:
        """The nodes that some outputs need, in order, each with what is over after it."""
        needed, steps = set(names), []
        for node in reversed(self._nodes):
            if needed.isdisjoint(node.outputs):
                continue
            over = {*node.inputs, *node.outputs} - needed - self._constants.keys()
            steps.append(_Step(node, frozenset(over)))
            needed.update(node.inputs)
        return steps[::-1]


def _parsed(data: bytes) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    # The parser raises protobuf's own error types, which differ between its versions.
    except Exception as error:
        raise EngineError("torch cannot run the engine: its bytes are no ONNX model") from error
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions != {"": OPSET}:
        raise EngineError(f"torch cannot run the engine: operators {versions}; expected {OPSET}")
    return model


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Of an input; 0 where any number is."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    same_length = len(shape) == len(wanted)
    return same_length and all(w in (0, n) for n, w in zip(shape, wanted, strict=True))


_signature = cache(inspect.signature)


def _bound(node: onnx.NodeProto) -> _Node:
    """A node with its operation, which takes just these inputs and attributes."""
    where = f"node {node.name[:100]!r} of type {node.op_type[:100]}"
    operation = OPERATIONS.get(node.op_type) if not node.domain else None
    if operation is None:
        raise EngineError(f"{where} is unknown to the torch runtime; use --runtime onnxruntime")
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    try:
        _signature(operation).bind(*node.input, **attributes)
    except TypeError as error:
        raise EngineError(
            f"{where} has inputs or attributes that the torch runtime does not know ({error}); "
            "use --runtime onnxruntime"
        ) from error
    return _Node(operation, tuple(node.input), tuple(node.output), attributes)


@contextmanager
def _float32_products() -> Iterator[None]:
    """No TF32 on a GPU and no bfloat16 on a CPU in products of float32 matrices.

    The settings are the process's and are read when a product begins, so they are put back
    afterwards, and two engines do not change them at the same time. What is float32 is left alone.
    """
    on_cpu: Any = torch.backends.mkldnn
    backends = (torch.backends.cuda.matmul, on_cpu.matmul)
    with _PRECISION:
        changed = [(b, _own_setting(b)) for b in backends if b.fp32_precision not in EXACT]
        try:
            for backend, _ in changed:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, setting in changed:
                backend.fp32_precision = setting


def _own_setting(backend: Any) -> str:  # noqa: ANN401
    """A precision other than float32, or "none" where it comes from a setting of all products."""
    precision: str = backend.fp32_precision
    backend.fp32_precision = "none"
    return "none" if backend.fp32_precision == precision else precision


def _no_autocast(device: torch.device) -> torch.autocast:
    """Keeps products in the type of their operands where the caller has chosen a shorter one."""
    return torch.autocast(device.type, enabled=False)


def choose_device(device: Device) -> tuple[str, str]:
    """What is used where `device` is asked for, and what people are told of it.

    Raises:
        EngineError: if it is "cuda" and there is no usable GPU.
    """
    problem = None if device == "cpu" else cuda_problem()
    if problem is not None and device == "cuda":
        reason, mend = problem
        raise EngineError(f"--device cuda: {reason}; use --device cpu, or {mend}")
    if device == "cpu" or not torch.backends.cuda.is_built():
        return "cpu", "cpu"
    return ("cpu", f"cpu ({problem[0]})") if problem else ("cuda", "cuda")
