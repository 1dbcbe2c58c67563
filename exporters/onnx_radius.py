"""The certificate inside the engine: nodes that compute a guaranteed radius beside the logits.

The statement is *program*, for the arithmetic and accumulation of the manifest: with the bounds
e = a + b t of the features, f = p + q t of a difference of logits, t = ||x - c||, L the Lipschitz
bound, for every rival j of the class y with margin M_j = z_y - z_j,

    linear head   r = min_j (M_j - 2 f - 2 ||w_y - w_j|| e) / (||w_y - w_j|| (L + b) + q)
    MLP head      r = (min_j max(2 G_j / (S_j + sqrt(S_j^2 + 2 m_j G_j)), G_j / T_j) - 2 e)
                      / (L + b), G_j = M_j - 2 f,
                  S_j >= ||grad (z_y - z_j)|| + q / (L + b), and T_j >= the Lipschitz constant of
                  z_y - z_j + q / (L + b)

(see `lipdeploy.certificate`; one f for the margin as this engine computes it, one for the worst
image of the ball). The nodes themselves compute in float32, in any order: constants are enlarged by
`ENLARGED`, which is far more than the few roundings of each sum of positive terms; M is made
smaller by it before the one subtraction that cancels; the sum of squares and the gradient's norm,
which are long sums, have factors of their own; and the result is made smaller once more. A radius
that is not positive, or of an image beyond the proven reach or with a pixel that is no number, is
0; within the reach every number is finite.
"""

from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from lipdeploy.arithmetic import FLOAT32
from lipdeploy.artifact import Manifest
from lipdeploy.directed import AffineBound
from lipdeploy.engine_error import reach
from lipdeploy.errors import ExportError
from lipdeploy.exporters.onnx_graph import GraphBuilder
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.heads import Head, LinearHead
from lipdeploy.mlp_head import MlpHead

Array = NDArray[np.float64]

ENLARGED = 1 + 2.0**-16
"""256 roundings of float32; no constant meets more than 20."""

SMALLEST = 1e-12
"""Added where a number flushed to zero could make a result too small."""

OWN = 1e18
"""Margin of a class over itself: never the smallest."""


def emit_radius(
    network: FrozenNetwork, manifest: Manifest, graph: GraphBuilder, hidden: str
) -> None:
    """Add the nodes to the output `radius`.

    Args:
        network: what the graph computes.
        manifest: its proven bounds.
        graph: with the values `pixels` and `logits`.
        hidden: name of the value before softplus, for an MLP head.
    """
    nodes = _RadiusNodes(network, manifest, graph)
    smallest = emit_smallest(network.head, nodes, hidden)
    limit = reach(network, manifest.rounding.arithmetic)
    capped = graph.node("Min", smallest, graph.number(limit))
    within = graph.node("Less", nodes.distance, graph.number(limit))
    holds = graph.node("And", graph.node("Greater", capped, graph.number(0.0)), within)
    if not manifest.rounding.arithmetic.has_program:
        # No radius for any image, whatever its logits are; the head's constants stay in the file.
        holds = graph.node("And", holds, graph.node("Less", capped, capped))
    scaled = graph.node("Mul", capped, nodes.lower(1 / 255))
    shown = graph.node("Where", holds, scaled, graph.number(0.0))
    graph.node("Reshape", shown, graph.integers(-1), output="radius")


class _RadiusNodes:
    """What both heads need: t, e, f, the margins and the tables of pairs of classes."""

    def __init__(self, network: FrozenNetwork, manifest: Manifest, graph: GraphBuilder) -> None:
        self.graph = graph
        self.errors = manifest.engine_errors
        self.lipschitz = (manifest.lipschitz_upper + self.errors.features.slope) * ENLARGED
        self.distance = self._distance(network)
        label = graph.node("ArgMax", "logits", axis=1, keepdims=0)
        self.label = label
        largest = graph.node("ReduceMax", "logits", axes=[1], keepdims=1)
        difference = graph.node("Sub", largest, "logits")
        margin = graph.node("Mul", difference, self.lower(1.0))
        own = self.pairs("own", OWN * np.eye(network.head.classes))
        self.margins = graph.node("Add", margin, own)

    def _distance(self, network: FrozenNetwork) -> str:
        """||x - c||, rounded up, shape (batch, 1)."""
        graph, n = self.graph, network.image_size
        colour = np.array(network.centre, dtype=np.float32).reshape(1, 3, 1, 1)
        shift = graph.node("Sub", "pixels", graph.constant("radius.centre", colour))
        squares = graph.node("Mul", shift, shift)
        total = squares
        # Axis by axis, so that sums stay short.
        for axis in (3, 2, 1):
            total = graph.node("ReduceSum", total, graph.integers(axis), keepdims=0)
        norm = graph.node("Sqrt", graph.reshape(total, -1, 1))
        factor = (1 + FLOAT32.gamma(n)) ** 2 * (1 + FLOAT32.gamma(3 + 8)) * ENLARGED
        return graph.node("Add", graph.node("Mul", norm, self.upper(factor)), self.upper(SMALLEST))

    def upper(self, value: float) -> str:
        """A constant, rounded up and enlarged."""
        enlarged = _float32(np.array(value * ENLARGED))
        return self.graph.number(float(np.nextafter(enlarged, np.float32("inf"))))

    def lower(self, value: float) -> str:
        """A constant, made smaller."""
        smaller = _float32(np.array(value / ENLARGED))
        return self.graph.number(float(np.nextafter(smaller, np.float32(0))))

    def affine(self, bound: AffineBound, factor: float = 1.0) -> str:
        """A bound at t, times a number, shape (batch, 1)."""
        product = self.graph.node("Mul", self.distance, self.upper(bound.slope * factor))
        return self.graph.node("Add", product, self.upper(bound.constant * factor + SMALLEST))

    def pairs(self, name: str, table: Array) -> str:
        """Row y of a table over pairs of classes, enlarged, shape (batch, classes).

        Rounded up to 16 bits, so that the last digits of another machine's square roots do not
        make it another file.
        """
        mantissa, exponent = np.frexp(table * ENLARGED)
        enlarged = _float32(np.ldexp(np.ceil(mantissa * 2.0**16), exponent - 16))
        return self.row(self.graph.constant(f"radius.{name}", enlarged))

    def row(self, table: str) -> str:
        """Row y of a table of the graph."""
        return self.graph.node("Gather", table, self.label)


def _float32(values: Array) -> NDArray[np.float32]:
    """Constants to nearest; raises ExportError for those that float32 cannot hold."""
    if not np.all(np.abs(values) < FLOAT32.largest):
        raise ExportError("a bound is too large for the radius in the graph")
    return values.astype(np.float32)


@singledispatch
def emit_smallest(head: Head, nodes: _RadiusNodes, hidden: str) -> str:
    """Add the nodes to the smallest radius over all rivals, in units of the pixels, (batch, 1)."""
    raise ExportError(f"{type(head).__name__} has no radius in the graph ({hidden})")


@emit_smallest.register
def _(head: LinearHead, nodes: _RadiusNodes, hidden: str) -> str:
    graph, errors = nodes.graph, nodes.errors
    distances = nodes.pairs("distances", head.distances_upper)
    of_features = graph.node("Mul", distances, nodes.affine(errors.features, 2.0))
    cost = graph.node("Add", of_features, nodes.affine(errors.logits, 2.0))
    left = graph.node("Sub", nodes.margins, cost)
    slope = graph.node("Mul", distances, nodes.upper(nodes.lipschitz))
    divisor = graph.node("Add", slope, nodes.upper(errors.logits.slope + SMALLEST))
    radii = graph.node("Mul", graph.node("Div", left, divisor), nodes.lower(1.0))
    return graph.node("ReduceMin", radii, axes=[1], keepdims=1)


@emit_smallest.register
def _(head: MlpHead, nodes: _RadiusNodes, hidden: str) -> str:
    graph, errors = nodes.graph, nodes.errors
    gap = graph.node("Sub", nodes.margins, nodes.affine(errors.logits, 2.0))
    gap = graph.node("Max", gap, graph.number(0.0))
    slope = _slopes(head, nodes, hidden)
    twice = graph.node("Mul", gap, graph.number(2.0))
    curvature = nodes.row(graph.operand(graph.weight("head.curvature", head.curvature)))
    bend = graph.node("Mul", curvature, twice)
    under_root = graph.node("Add", graph.node("Mul", slope, slope), bend)
    divisor = graph.node("Add", slope, graph.node("Sqrt", under_root))
    closed = graph.node("Div", twice, divisor)
    lipschitz = nodes.row(graph.operand(graph.weight("head.lipschitz", head.lipschitz)))
    steepest = graph.node("Add", lipschitz, nodes.upper(_extra(nodes)))
    largest = graph.node("Max", closed, graph.node("Div", gap, steepest))
    radii = graph.node("Mul", largest, nodes.lower(1.0))
    smallest = graph.node("ReduceMin", radii, axes=[1], keepdims=1)
    left = graph.node("Sub", smallest, nodes.affine(errors.features, 2.0))
    return graph.node("Mul", left, nodes.lower(1 / nodes.lipschitz))


def _extra(nodes: _RadiusNodes) -> float:
    """What the error of the logits adds to every slope."""
    return nodes.errors.logits.slope / nodes.lipschitz + SMALLEST


def _slopes(head: MlpHead, nodes: _RadiusNodes, hidden: str) -> str:
    """Upper bounds of ||grad (z_y - z_j)|| + q / (L + b), shape (batch, classes).

    The gradient is ((w_y - w_j) * sigmoid(p)) W1; its error is at most ||w_y - w_j|| times
    `EngineErrors.slopes`, which covers p, sigmoid and these products in any order.
    """
    graph, errors = nodes.graph, nodes.errors
    second = graph.operand(graph.weight("head.weight", head.weight))
    first = graph.operand(graph.weight("head.hidden_weight", head.hidden_weight))
    own = graph.node("Gather", second, nodes.label)
    difference = graph.node("Sub", graph.reshape(own, -1, 1, head.weight.shape[1]), second)
    sigmoid = graph.node("Sigmoid", hidden)
    inner = graph.node("Mul", difference, graph.reshape(sigmoid, -1, 1, head.weight.shape[1]))
    gradient = graph.node("MatMul", inner, first)
    squares = graph.node("Mul", gradient, gradient)
    total = graph.node("ReduceSum", squares, graph.integers(2), keepdims=0)
    norm = graph.node("Sqrt", total)
    factor = (1 + FLOAT32.gamma(head.features + 8)) * ENLARGED
    error = graph.node(
        "Mul", nodes.pairs("distances", head.distances_upper), nodes.affine(errors.slopes)
    )
    sum_of_both = graph.node("Add", graph.node("Mul", norm, nodes.upper(factor)), error)
    return graph.node("Add", sum_of_both, nodes.upper(_extra(nodes)))
