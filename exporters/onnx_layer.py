"""The graph of one layer by itself, with what comes before and after it in its own layout.

For the planner: what a layer costs depends on shapes alone, so its weights are zeros.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lipdeploy.exporters.onnx_graph import IR_VERSION, OPSET, GraphBuilder
from lipdeploy.exporters.onnx_grid import Grid, Layout, Wanted, add_bias, halves, space_to_depth
from lipdeploy.exporters.onnx_operators import emit_operator, takes_rows
from lipdeploy.exporters.plan import TILE, Choice, LayerShape, Target
from lipdeploy.fourier import RealFourier
from lipdeploy.operators import DenseMatrix, LinearOperator, PointwiseMatrix
from lipdeploy.spectral import FusedSpectralConv, SpectralConv
from lipdeploy.taylor import TaylorConv
from lipdeploy.tiled import TiledConv

INPUT = "x"
TYPICAL_DEGREE, TYPICAL_KERNEL = 16, 13
"""Of a series, and of an exponential, whose kernel is not known yet."""


def skeleton(shape: LayerShape, choice: Choice) -> LinearOperator:
    """The operator of a choice, all weights 0."""
    n, c_in, c_out = shape.grid, shape.in_channels, shape.out_channels
    if choice.form == "pointwise":
        return PointwiseMatrix(n, _zeros(c_in, c_out))
    if choice.form == "dense":
        return DenseMatrix(n, _zeros(n * n * c_in, n * n * c_out))
    if choice.form == "taylor":
        c, k = max(c_in, c_out), shape.kernel_size
        return TaylorConv(n, c_in, c_out, _zeros(k * k, c, c), TYPICAL_DEGREE)
    if choice.form == "tiled":
        return TiledConv(n, TYPICAL_KERNEL, _separable(TILE, c_in, c_out, Choice("spectral")))
    if choice.form == "spectral":
        return _separable(n, c_in, c_out, choice)
    given = _blocks(n, c_in, c_out) | choice.multiplication
    return FusedSpectralConv(plane=_zeros(n * n, n * n), **given)


def _separable(n: int, c_in: int, c_out: int, choice: Choice) -> SpectralConv:
    given = _blocks(n, c_in, c_out) | choice.multiplication
    return SpectralConv(basis=_zeros(n, n), phases=_zeros(2 * n, 2 * n), **given)


def _blocks(n: int, c_in: int, c_out: int) -> dict[str, Any]:
    fourier = RealFourier(n)
    count = len(fourier.frequencies())
    return {
        "real_blocks": _zeros(fourier.edge**2, c_out, c_in),
        "complex_blocks": _zeros(count, 2, c_out, c_in),
    }


def _zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, dtype=np.float32)


def input_shape(shape: LayerShape, choice: Choice, batch: int) -> tuple[int, ...]:
    """Of the value `INPUT`, which lies as the choice takes it most easily."""
    n, c = shape.grid, shape.in_channels // (4 if shape.cells else 1)
    tail = (c, batch) if choice.products == "columns" else (batch, c)
    return (*([4] if shape.cells else []), n, n, *tail)


def layer_graph(shape: LayerShape, choice: Choice, target: Target) -> onnx.ModelProto:
    """Input, linear layer, bias, maximum of channel pairs, and space-to-depth if that follows."""
    graph = GraphBuilder(target.rounding.block, prepared=True)
    operator = skeleton(shape, choice)
    layout: Layout = "cells" if shape.cells else "standard"
    x = Grid((INPUT,), shape.grid, shape.in_channels, layout, takes_rows(operator))
    wanted = Wanted(shape.out_channels % 2 == 0, shape.cut and shape.grid % 2 == 0)
    y = emit_operator(operator, graph, x, "layer", wanted)
    y = add_bias(graph, y, graph.weight("layer.bias", _zeros(shape.out_channels)))
    if wanted.halves:
        y, *pair = halves(graph, y)
        y = replace(y, pieces=(graph.node("Max", *pair),), channels=y.channels // 2)
    if shape.cut:
        y = space_to_depth(graph, y)
    graph.drop_unused(y.pieces)
    value = helper.make_tensor_value_info
    proto = helper.make_graph(
        graph.nodes,
        "layer",
        [value(INPUT, TensorProto.FLOAT, input_shape(shape, choice, target.batch))],
        [value(name, TensorProto.FLOAT, None) for name in y.pieces],
        list(graph.constants.values()),
    )
    imports = [helper.make_opsetid("", OPSET)]
    return helper.make_model(proto, opset_imports=imports, ir_version=IR_VERSION)
