"""What each type of node of an engine's graph computes, in torch.

Shapes, cuts and axes are tuples of integers, all other inputs are tensors; attributes are arguments
by name.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from lipdeploy.errors import EngineError

Integers = tuple[int, ...]
Value = Tensor | Integers
Operation = Callable[..., Any]
"""From the inputs of a node to its output, or to all of them where they are a tuple."""


TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}
"""Of the numbers that graphs compute with."""


def _cast(x: Tensor, *, to: int) -> Tensor:
    """To another type of numbers; in float64 all of them are."""
    if to not in TYPES:
        raise EngineError(f"the torch runtime has no type {to} of ONNX")
    return x if x.dtype == torch.float64 else x.to(TYPES[to])


def _slice(x: Tensor, starts: Integers, stops: Integers, axes: Integers) -> Tensor:
    cuts = [slice(None)] * x.ndim
    for axis, start, stop in zip(axes, starts, stops, strict=True):
        cuts[axis] = slice(start, stop)
    return x[tuple(cuts)]


def _pad(x: Tensor, border: Integers) -> Tensor:
    """Zeros before and after each axis, first all numbers before, then all after."""
    pairs = zip(border[: x.ndim], border[x.ndim :], strict=True)
    return functional.pad(x, [count for pair in reversed(list(pairs)) for count in pair])


def _softplus(x: Tensor) -> Tensor:
    """Max(x, 0) + log(1 + exp(-|x|)); torch's own is the identity above 20."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def _sqrt(x: Tensor) -> Tensor:
    """The root, with the gradient 0 at 0, where a distance has no slope; torch's is infinite.

    Times the gradient 0 of a sum of squares that would be NaN, in all pixels.
    """
    if not x.requires_grad:
        return x.sqrt()
    is_zero = x == 0
    return x.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)


OPERATIONS: Mapping[str, Operation] = {
    "Add": operator.add,
    "And": operator.and_,
    "ArgMax": lambda x, *, axis, keepdims: x.argmax(axis, keepdim=bool(keepdims)),
    "Cast": _cast,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Div": operator.truediv,
    "Gather": lambda table, rows: table[rows],
    "Greater": operator.gt,
    "Less": operator.lt,
    "MatMul": operator.matmul,
    "Max": lambda a, b: a.maximum(b),
    "Min": lambda a, b: a.minimum(b),
    "Mul": operator.mul,
    "Neg": operator.neg,
    "Pad": _pad,
    "ReduceMax": lambda x, *, axes, keepdims: x.amax(axes, keepdim=bool(keepdims)),
    "ReduceMin": lambda x, *, axes, keepdims: x.amin(axes, keepdim=bool(keepdims)),
    "ReduceSum": lambda x, axes, *, keepdims: x.sum(axes, keepdim=bool(keepdims)),
    "Reshape": lambda x, shape: x.reshape(shape),
    "Sigmoid": lambda x: x.sigmoid(),
    "Slice": _slice,
    "Softplus": _softplus,
    "Split": lambda x, sizes, *, axis: x.split(sizes, axis),
    "Sqrt": _sqrt,
    "Sub": operator.sub,
    "Transpose": lambda x, *, perm: x.permute(perm),
    "Where": lambda holds, x, y: x.where(holds, y),
}
"""By type of node, for the inputs and attributes that the exporters emit and no others."""
