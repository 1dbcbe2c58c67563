"""The ONNX graph of a FrozenNetwork, node by node.

The graph takes `pixels` (batch, 3, n, n), float32, 0 ... 255, works in grid-first layout, and gives
`features` (batch, d), `logits` (batch, classes) and `radius` (batch,): the certified radius of the
statement *program*, l2 in pixels of [0, 1], 0 where there is none. Stored arrays keep their names
and types; float16 ones are cast exactly to float32.
"""

from functools import singledispatch

import numpy as np
import onnx
from onnx import TensorProto, helper

from lipdeploy import frozen
from lipdeploy.artifact import MANIFEST_KEY, Manifest
from lipdeploy.errors import ExportError
from lipdeploy.exporters.onnx_graph import IR_VERSION, OPSET, GraphBuilder
from lipdeploy.exporters.onnx_operators import emit_operator
from lipdeploy.exporters.onnx_radius import emit_radius
from lipdeploy.heads import Head, LinearHead
from lipdeploy.mlp_head import MlpHead
from lipdeploy.rounding import BLOCKS


def build_model(
    network: frozen.FrozenNetwork, manifest: Manifest, *, prepared: bool = False
) -> onnx.ModelProto:
    """The ONNX model of a network, with the manifest in its metadata.

    Args:
        network: what it computes.
        manifest: what it says of itself; decides on the order of sums and holds the bounds that
            the radius is computed with.
        prepared: see `GraphBuilder`.
    """
    graph = GraphBuilder(BLOCKS[manifest.accumulation], prepared=prepared)
    x = graph.transpose("pixels", 2, 3, 0, 1)
    shape, layer = (network.image_size, 3), 0
    for operation in network.operations:
        x = emit(operation, graph, x, shape, f"layer{layer}")
        layer += isinstance(operation, frozen.Linear)
        shape = operation.shape_after(shape)
    channels_first = graph.transpose(x, 2, 3, 0, 1)
    flat = graph.integers(-1, network.head.features)
    features = graph.node("Reshape", channels_first, flat, output="features")
    hidden = emit_head(network.head, graph, features)
    emit_radius(network, manifest, graph, hidden)
    return _model(network, graph, manifest)


def _model(
    network: frozen.FrozenNetwork, graph: GraphBuilder, manifest: Manifest
) -> onnx.ModelProto:
    n, head = network.image_size, network.head
    value = helper.make_tensor_value_info
    proto = helper.make_graph(
        graph.nodes,
        "lipdeploy",
        [value("pixels", TensorProto.FLOAT, ["batch", 3, n, n])],
        [
            value("features", TensorProto.FLOAT, ["batch", head.features]),
            value("logits", TensorProto.FLOAT, ["batch", head.classes]),
            value("radius", TensorProto.FLOAT, ["batch"]),
        ],
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


@singledispatch
def emit(
    operation: frozen.Operation,
    graph: GraphBuilder,
    x: str,
    shape: frozen.Grid,
    prefix: str,
) -> str:
    """Add the nodes of an operation on x of shape (n, n, batch, c), shape = (n, c)."""
    raise ExportError(f"{type(operation).__name__} has no ONNX form ({prefix}, {shape}, {x})")


@emit.register
def _(
    operation: frozen.Shift,
    graph: GraphBuilder,
    x: str,
    shape: frozen.Grid,
    prefix: str,
) -> str:
    colour = np.array(operation.colour, dtype=np.float32)
    return graph.node("Sub", x, graph.constant("shift", colour))


@emit.register
def _(
    operation: frozen.MaxMin,
    graph: GraphBuilder,
    x: str,
    shape: frozen.Grid,
    prefix: str,
) -> str:
    first, second = graph.halves(x, 3, shape[1])
    parts = [graph.node("Max", first, second), graph.node("Min", first, second)]
    return graph.concatenate(parts, axis=3)


@emit.register
def _(
    operation: frozen.ChannelMax,
    graph: GraphBuilder,
    x: str,
    shape: frozen.Grid,
    prefix: str,
) -> str:
    return graph.node("Max", *graph.halves(x, 3, shape[1]))


@emit.register
def _(
    operation: frozen.SpaceToDepth,
    graph: GraphBuilder,
    x: str,
    shape: frozen.Grid,
    prefix: str,
) -> str:
    n, c = shape
    if n % 2:
        x = graph.node("Pad", x, graph.integers(0, 0, 0, 0, 1, 1, 0, 0))
    m = (n + 1) // 2
    cells = graph.transpose(graph.reshape(x, m, 2, m, 2, -1, c), 0, 2, 4, 5, 1, 3)
    return graph.reshape(cells, m, m, -1, 4 * c)


@emit.register
def _(
    operation: frozen.Linear,
    graph: GraphBuilder,
    x: str,
    shape: frozen.Grid,
    prefix: str,
) -> str:
    bias = operation.bias
    spread = bias if bias.ndim == 1 else bias[:, :, None, :]
    y = emit_operator(operation.operator, graph, x, prefix)
    return graph.node("Add", y, graph.operand(graph.weight(f"{prefix}.bias", spread)))


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
