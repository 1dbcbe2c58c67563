"""Networks as named arrays and plain values, and back."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from lipdeploy.errors import LipdeployError, ModelError
from lipdeploy.frozen import (
    ChannelMax,
    FrozenNetwork,
    Linear,
    MaxMin,
    Operation,
    ProjectionPooling,
    Shift,
    SpaceToDepth,
)
from lipdeploy.heads import Head, LinearHead
from lipdeploy.mlp_head import MlpHead
from lipdeploy.operators import DenseMatrix, LinearOperator, PointwiseMatrix
from lipdeploy.spectral import FusedSpectralConv, SpectralConv
from lipdeploy.taylor import TaylorConv
from lipdeploy.tiled import TiledConv

Weights = NDArray[Any]

MAX_OPERATIONS = 10_000
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What values of other types and sizes than expected can raise."""

FORMS: dict[str, Callable[..., LinearOperator]] = {
    kind.form: kind
    for kind in (PointwiseMatrix, DenseMatrix, SpectralConv, FusedSpectralConv, TaylorConv)
} | {TiledConv.form: TiledConv.restore}
SIMPLE: dict[str, Callable[[], Operation]] = {
    kind.kind: kind for kind in (MaxMin, ChannelMax, ProjectionPooling, SpaceToDepth)
}
HEADS: dict[str, type[Head]] = {kind.kind: kind for kind in (LinearHead, MlpHead)}


def describe(network: FrozenNetwork) -> dict[str, Any]:
    """The structure of a network in plain values; its arrays are `network.weights()`."""
    return {
        "image_size": network.image_size,
        "operations": [_describe_operation(operation) for operation in network.operations],
        "head": network.head.kind,
    }


def _describe_operation(operation: Operation) -> dict[str, Any]:
    if isinstance(operation, Linear):
        operator = operation.operator
        linear = {"form": operator.form, "parameters": operator.parameters()}
        return {"kind": operation.kind, **linear}
    if isinstance(operation, Shift):
        return {"kind": operation.kind, "colour": list(operation.colour)}
    return {"kind": operation.kind}


def restore(structure: dict[str, Any], weights: dict[str, Weights]) -> FrozenNetwork:
    """Undo `describe`.

    Raises:
        ModelError: if structure and arrays do not make a network.
    """
    try:
        operations: list[Operation] = []
        count = 0
        if len(structure["operations"]) > MAX_OPERATIONS:
            raise ValueError("too many operations")
        for entry in structure["operations"]:
            if entry["kind"] == Linear.kind:
                operations.append(_restore_linear(entry, _under(f"layer{count}", weights)))
                count += 1
            elif entry["kind"] == Shift.kind:
                operations.append(Shift(tuple(entry["colour"])))
            else:
                operations.append(SIMPLE[entry["kind"]]())
        head: Head = HEADS[structure["head"]](**_under("head", weights))
        image_size = structure["image_size"]
        if type(image_size) is not int:
            raise ValueError(f"image size {image_size!r}")
        return FrozenNetwork(image_size, tuple(operations), head)
    except DAMAGE as error:
        raise ModelError(
            f"the manifest does not describe a network ({error!r:.200}); export the model again"
        ) from error
    except LipdeployError as error:
        raise ModelError(
            f"the network in the file does not fit together: {error}; export the model again"
        ) from error


_PARAMETER_TYPES = {"scale": float, "products": str}
"""Those of an operator that are no integers."""


def _restore_linear(entry: dict[str, Any], weights: dict[str, Weights]) -> Linear:
    bias = weights.pop("bias")
    parameters = entry["parameters"]
    for name, value in parameters.items():
        if type(value) is not _PARAMETER_TYPES.get(name, int):
            raise ValueError(f"{name} {value!r}")
    return Linear(FORMS[entry["form"]](**parameters, **weights), bias)


def _under(prefix: str, weights: dict[str, Weights]) -> dict[str, Weights]:
    head = f"{prefix}."
    return {name[len(head) :]: w for name, w in weights.items() if name.startswith(head)}
