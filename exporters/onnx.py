"""The ONNX graph of a FrozenNetwork, node by node.

The graph takes `pixels` (batch, 3, n, n), float32, 0 ... 255, and gives
`features` (batch, d), `logits` (batch, classes) and `radius` (batch,): the certified radius of the
statement *program*, l2 in pixels of [0, 1], 0 where there is none. Stored arrays keep their names
and types; float16 ones are cast exactly to float32.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch
from itertools import takewhile
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from lipdeploy import frozen
from lipdeploy.artifact import MANIFEST_KEY, Manifest
from lipdeploy.errors import ExportError
from lipdeploy.exporters.onnx_graph import IR_VERSION, OPSET, GraphBuilder
from lipdeploy.exporters.onnx_grid import (
    Grid,
    Wanted,
    add_bias,
    halves,
    space_to_depth,
    standard,
)
from lipdeploy.exporters.onnx_operators import emit_operator, takes_rows
from lipdeploy.exporters.onnx_radius import emit_radius
from lipdeploy.exporters.onnx_wire import MAX_FIELDS
from lipdeploy.heads import Head, LinearHead
from lipdeploy.mlp_head import MlpHead

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "tf32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""Types of the body's nodes, by arithmetic; those of the head are float32. TF32 is no type: a
runtime switches it on for the whole graph."""


def build_model(
    network: frozen.FrozenNetwork,
    manifest: Manifest,
    *,
    prepared: bool = False,
    with_radius: bool = True,
    most_nodes: int = MAX_FIELDS,
) -> onnx.ModelProto:
    """The ONNX model of a network, with the manifest in its metadata.

    Args:
        network: what it computes.
        manifest: what it says of itself; decides on the order of sums and holds the bounds that
            the radius is computed with.
        prepared: see `GraphBuilder`.
        with_radius: whether there is the output `radius`.
        most_nodes: see `GraphBuilder`.
    """
    graph = GraphBuilder(manifest.longest_sum, prepared=prepared, most_nodes=most_nodes)
    if manifest.arithmetic not in DTYPES:
        raise ExportError(f"no engine computes in {manifest.arithmetic}")
    dtype = DTYPES[manifest.arithmetic]
    n, layer = network.image_size, 0
    first = next(network.linear(), None)
    x = _pixels(graph, n, rows=first is not None and takes_rows(first.operator))
    for index, operation in enumerate(network.operations):
        if isinstance(operation, frozen.Linear) and graph.dtype != dtype:
            # Whole numbers of 0 ... 255 less a colour are exact in every type.
            graph.dtype = dtype
            x = replace(x, pieces=tuple(graph.cast(piece) for piece in x.pieces))
        wanted = wanted_after(network.operations[index + 1 :], x.side)
        x = emit(operation, graph, x, f"layer{layer}", wanted)
        layer += isinstance(operation, frozen.Linear)
    if graph.dtype != np.float32:
        graph.dtype = np.dtype(np.float32)
        x = replace(x, pieces=tuple(graph.cast(piece) for piece in x.pieces))
    features = _features(graph, x)
    hidden = emit_head(network.head, graph, features)
    if with_radius:
        emit_radius(network, manifest, graph, hidden)
    return _model(network, graph, manifest, with_radius=with_radius)


def _pixels(graph: GraphBuilder, n: int, *, rows: bool) -> Grid:
    """The input as a grid of three channels."""
    if rows:
        return Grid((graph.transpose("pixels", 2, 3, 0, 1),), n, 3, rows=True)
    # Two transpositions of matrices are faster than one of all axes.
    flat = graph.transpose(graph.reshape("pixels", -1, 3 * n * n), 1, 0)
    return Grid((graph.transpose(graph.reshape(flat, 3, n, n, -1), 1, 2, 0, 3),), n, 3)


def _features(graph: GraphBuilder, x: Grid) -> str:
    """(n, n, c, batch) as rows ordered (channel, row, column)."""
    value, size = standard(graph, x), x.side**2 * x.channels
    if x.side == 1 and x.rows:
        return graph.reshape(value, -1, size, output="features")
    if x.side == 1:
        return graph.node(
            "Transpose", graph.reshape(value, size, -1), output="features", perm=[1, 0]
        )
    last = (2, 3) if x.rows else (3, 2)
    first = graph.transpose(value, *last, 0, 1)
    return graph.reshape(first, -1, size, output="features")


def _model(
    network: frozen.FrozenNetwork, graph: GraphBuilder, manifest: Manifest, *, with_radius: bool
) -> onnx.ModelProto:
    n, head = network.image_size, network.head
    value = helper.make_tensor_value_info
    outputs = [
        value("features", TensorProto.FLOAT, ["batch", head.features]),
        value("logits", TensorProto.FLOAT, ["batch", head.classes]),
        *([value("radius", TensorProto.FLOAT, ["batch"])] if with_radius else []),
    ]
    if graph.prepared:
        graph.drop_unused([output.name for output in outputs])
    proto = helper.make_graph(
        graph.nodes,
        "lipdeploy",
        [value("pixels", TensorProto.FLOAT, ["batch", 3, n, n])],
        outputs,
        list(graph.constants.values()),
    )
    model = helper.make_model(
        proto,
        producer_name="lipdeploy",
        producer_version=str(manifest.versions.get("lipdeploy", "")),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, {MANIFEST_KEY: manifest.to_json()})
    return model


def wanted_after(operations: Sequence[frozen.Operation], side: int) -> Wanted:
    """What the operations after a linear layer on a grid take most easily."""
    following = list(takewhile(lambda op: not isinstance(op, frozen.Linear), operations))
    paired = frozen.MaxMin | frozen.ChannelMax | frozen.ProjectionPooling
    is_paired = bool(following) and isinstance(following[0], paired)
    is_cut = any(isinstance(operation, frozen.SpaceToDepth) for operation in following)
    return Wanted(is_paired, is_cut and side % 2 == 0)


@singledispatch
def emit(
    operation: frozen.Operation, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted
) -> Grid:
    """Add the nodes of an operation."""
    raise ExportError(f"{type(operation).__name__} has no ONNX form ({prefix}, {x}, {wanted})")


@emit.register
def _(operation: frozen.Shift, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted) -> Grid:
    colour = np.array(operation.colour, dtype=np.float32).reshape(3, 1)
    if x.rows:
        # For one image a constant as large as it is faster than three numbers that are broadcast.
        colour = np.broadcast_to(colour.T, (x.side, x.side, 1, 3))
    shifted = graph.node("Sub", *x.pieces, graph.constant("shift", colour))
    return replace(x, pieces=(shifted,))


@emit.register
def _(operation: frozen.MaxMin, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted) -> Grid:
    x, *pair = halves(graph, x)
    return replace(x, pieces=(graph.node("Max", *pair), graph.node("Min", *pair)))


@emit.register
def _(
    operation: frozen.ChannelMax, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted
) -> Grid:
    x, *pair = halves(graph, x)
    return replace(x, pieces=(graph.node("Max", *pair),), channels=x.channels // 2)


@emit.register
def _(
    operation: frozen.ProjectionPooling, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted
) -> Grid:
    x, first, second = halves(graph, x)
    negative = graph.node("Min", first, graph.number(0.0))
    squares = [graph.node("Mul", part, part) for part in (negative, second)]
    distance = graph.node("Sqrt", graph.node("Add", *squares))
    return replace(x, pieces=(distance,), channels=x.channels // 2)


@emit.register
def _(
    operation: frozen.SpaceToDepth, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted
) -> Grid:
    return space_to_depth(graph, x)


@emit.register
def _(operation: frozen.Linear, graph: GraphBuilder, x: Grid, prefix: str, wanted: Wanted) -> Grid:
    y = emit_operator(operation.operator, graph, x, prefix, wanted)
    return add_bias(graph, y, graph.weight(f"{prefix}.bias", operation.bias))


@singledispatch
def emit_head(head: Head, graph: GraphBuilder, features: str) -> str:
    """Add the nodes from `features` to the output `logits`; gives the value before softplus."""
    raise ExportError(f"{type(head).__name__} has no ONNX form ({features})")


@emit_head.register
def _(head: LinearHead, graph: GraphBuilder, features: str) -> str:
    _affine(graph, features, head, "weight", "bias", output="logits")
    return features


@emit_head.register
def _(head: MlpHead, graph: GraphBuilder, features: str) -> str:
    hidden = _affine(graph, features, head, "hidden_weight", "hidden_bias")
    _affine(graph, graph.node("Softplus", hidden), head, "weight", "bias", output="logits")
    return hidden


def _affine(
    graph: GraphBuilder, x: str, head: Head, weight: str, bias: str, output: str | None = None
) -> str:
    stored, offset = (graph.weight(f"head.{name}", head.weights()[name]) for name in (weight, bias))
    product = graph.product(x, graph.turned(stored, 1, 0), axis=1)
    return graph.node("Add", product, graph.operand(offset), output=output)
