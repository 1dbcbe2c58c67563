"""From a trained torch network to a FrozenNetwork: each linear layer becomes one plain operator.

Computed in float64 from the trained float32 weights.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import singledispatch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lipdeploy import frozen
from lipdeploy.errors import FreezeError
from lipdeploy.exporters.forms import (
    Symbols,
    freeze_kernel,
    square_root_of_rest,
    symbol_operator,
)
from lipdeploy.exporters.onnx_cost import CostModel
from lipdeploy.exporters.plan import Choice, FormChoice, LayerShape, Target, make_plan
from lipdeploy.exporters.sources import Item, Mixing, Source, folded
from lipdeploy.fourier import symbol_factors
from lipdeploy.heads import Head, LinearHead
from lipdeploy.mlp_head import MlpHead
from lipdeploy.operators import LinearOperator
from lipdeploy.spectral import Spectral
from lipdeploy.training import activations, heads
from lipdeploy.training.circular import CircularLayer
from lipdeploy.training.lipconvnet import INPUT_GAIN, LipConvNet
from lipdeploy.training.rescaled import SllConvolution
from lipdeploy.training.soc import SkewOrthogonalConvolution

Array = NDArray[np.float64]


def freeze(
    network: LipConvNet,
    form: FormChoice = "auto",
    plan: Sequence[Choice] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> frozen.FrozenNetwork:
    """Freeze a trained network, its input normalisation folded into the first layer.

    Args:
        network: a trained network, in evaluation mode.
        form: form of all layers, or "auto"; for a plan by the cost model.
        plan: how each linear layer is evaluated, instead.
        progress: called with the number of layers done and in all.

    Raises:
        FreezeError: if a module has no frozen form, or the form asked for does not exist for it.
    """
    if network.training:
        raise FreezeError("freeze needs a network in evaluation mode; call network.eval() first")
    if plan is None:
        plan = make_plan(layer_shapes(network), form, Target(), CostModel())
    network = copy.deepcopy(network).double()
    operations: list[frozen.Operation] = []
    choices = iter(plan)
    for item in _sources(network):
        if isinstance(item, Source):
            operations.append(frozen.Linear(item.operator(next(choices)), item.bias))
            progress(sum(isinstance(op, frozen.Linear) for op in operations), len(plan))
        else:
            operations.append(item)
    operations[:1] = _fold_normalisation(operations[0], network)
    size = network.architecture.image_size
    return frozen.FrozenNetwork(size, tuple(operations), freeze_head(network.head))


def layer_shapes(network: LipConvNet) -> tuple[LayerShape, ...]:
    """What a plan needs to know of each linear layer, first to last."""
    return tuple(shape for _, shape in named_shapes(network))


def named_shapes(network: LipConvNet) -> list[tuple[str, LayerShape]]:
    """`layer_shapes` with the name of the module of the body that each comes from."""
    return [(item.name, item.shape) for item in _sources(network) if isinstance(item, Source)]


def _sources(network: LipConvNet) -> list[Source | frozen.Operation]:
    """The operations of the body, linear layers not in any form yet."""
    items: list[Item] = []
    for name, module in network.body.named_children():
        for item in items_of(module):
            if isinstance(item, Source | Mixing):
                items.append(replace(item, name=f"body.{name}"))
            else:
                items.append(item)
    return folded(items)


@singledispatch
def items_of(module: nn.Module) -> list[Item]:
    """What one module of the body becomes."""
    raise FreezeError(f"{type(module).__name__} has no frozen form")


@items_of.register
def _(module: activations.MaxMin) -> list[Item]:
    return [frozen.MaxMin()]


@items_of.register
def _(module: activations.ChannelMax) -> list[Item]:
    return [frozen.ChannelMax()]


@items_of.register
def _(module: activations.SpaceToDepth) -> list[Item]:
    return [frozen.SpaceToDepth()]


@items_of.register
def _(module: activations.Householder) -> list[Item]:
    items: list[Item] = []
    for angles in _numpy(module.angles):
        rotation = Mixing(_pair_rotation(angles))
        items += [rotation, frozen.MaxMin(), Mixing(rotation.matrix.T)]
    return items


@items_of.register
def _(module: activations.ProjectionPooling) -> list[Item]:
    return [Mixing(_pair_rotation(_numpy(module.angles))), frozen.ProjectionPooling()]


def _pair_rotation(angles: Array) -> Array:
    """The matrix of `activations.rotated`, shape (2 h, 2 h) for angles (h,)."""
    cosines, sines = np.diag(np.cos(angles)), np.diag(np.sin(angles))
    return np.block([[cosines, -sines], [sines, cosines]])


@items_of.register
def _(module: SkewOrthogonalConvolution) -> list[Item]:
    channels = module.in_channels, module.out_channels
    shape = LayerShape(module.grid, *channels, module.kernel.kernel_size, module.padding)

    def build(shape: LayerShape, choice: Choice) -> LinearOperator:
        return freeze_kernel(_numpy(module.kernel()), shape, choice)

    return [Source(shape, build, _numpy(module.bias))]


@items_of.register
def _(module: CircularLayer) -> list[Item]:
    c_in, c_out = module.in_channels, module.out_channels

    def symbols(frequencies: NDArray[np.int64], n: int) -> NDArray[np.complex128]:
        return _symbols(module, frequencies, n)[:, :c_out, :c_in]

    return [_symbol_source(module, (c_in, c_out), symbols, _numpy(module.bias))]


@items_of.register
def _(module: SllConvolution) -> list[Item]:
    """Two linear layers with MaxMin between them.

    With R = (I - U U^*)^(1/2) the map x -> (u, v) = (U^* x, R x) is an isometry, and
    y = x - 2 U relu(u + c) = R v - U |u + c| - U c. MaxMin makes |w| of the pair (w, -w), and
    leaves the pair (v, v) as it is; scaled by sqrt(1/2) all of it is an isometry again.
    """
    c_in, c_out, c = module.in_channels, module.out_channels, module.channels
    offsets = _numpy(module.contraction()[1])

    def expanding(frequencies: NDArray[np.int64], n: int) -> NDArray[np.complex128]:
        u = _symbols(module, frequencies, n)
        adjoint, rest = np.swapaxes(u.conj(), -1, -2), square_root_of_rest(u)
        rows = [adjoint, rest, -adjoint, rest]
        whole: NDArray[np.complex128] = np.concatenate(rows, axis=1) * np.sqrt(0.5)
        return whole[:, :, :c_in]

    def reducing(frequencies: NDArray[np.int64], n: int) -> NDArray[np.complex128]:
        u = _symbols(module, frequencies, n)
        rest = square_root_of_rest(u)
        whole: NDArray[np.complex128] = np.concatenate([-u, rest, u, rest], axis=2) * np.sqrt(0.5)
        return whole[:, :c_out]

    zeros = np.zeros(c)
    inside = np.concatenate([offsets, zeros, -offsets, zeros]) * np.sqrt(0.5)
    constant = _symbols(module, np.zeros((1, 2), dtype=np.int64), module.grid)[0].real
    behind = -(constant @ offsets)[:c_out]
    return [
        _symbol_source(module, (c_in, 4 * c), expanding, inside),
        frozen.MaxMin(),
        _symbol_source(module, (4 * c, c_out), reducing, behind),
    ]


def _symbol_source(
    module: CircularLayer, channels: tuple[int, int], symbols: Symbols, bias: Array
) -> Source:
    shape = LayerShape(
        module.grid, *channels, module.kernel_size, "circular", is_local=module.is_local
    )
    return Source(shape, lambda shape, choice: symbol_operator(symbols, shape, choice), bias)


def _symbols(
    module: CircularLayer, frequencies: NDArray[np.int64], n: int
) -> NDArray[np.complex128]:
    """The symbols of a layer at frequencies of an n x n grid."""
    factors = symbol_factors(frequencies, module.kernel_size, n)
    with torch.no_grad():
        real, imaginary = module.symbol(*(torch.from_numpy(factor) for factor in factors))
    return _numpy(real) + 1j * _numpy(imaginary)


def _numpy(tensor: Tensor | nn.Module) -> Array:
    if not isinstance(tensor, Tensor):
        raise FreezeError(f"{type(tensor).__name__} is no tensor")
    return tensor.detach().cpu().double().numpy()


def _fold_normalisation(
    first: frozen.Operation, network: LipConvNet
) -> tuple[frozen.Operation, frozen.Operation]:
    """Y = W s (p - mean) + b = (s W) (p - c) + (b - (s W) (mean - c)), p the pixels of 0 ... 255.

    The colour c is the mean rounded to whole numbers: taking it off is exact, and the smaller the
    numbers that are multiplied, the smaller are rounding errors.
    """
    if not isinstance(first, frozen.Linear):
        raise FreezeError("the first module must be a convolution")
    operator = first.operator.scaled(INPUT_GAIN / 255)
    n = operator.grid
    mean = _numpy(network.mean)
    red, green, blue = (int(value) for value in np.clip(np.rint(mean), 0, 255))
    colour = (red, green, blue)
    rest = operator.mv(np.broadcast_to(mean - np.array(colour), (n, n, 1, 3)))[:, :, 0]
    if isinstance(operator, Spectral):
        rest = rest.mean(axis=(0, 1))  # a circular convolution of a constant is one
    return frozen.Shift(colour), frozen.Linear(operator, first.bias - rest)


@singledispatch
def freeze_head(head: nn.Module) -> Head:
    """The frozen head of a head module."""
    raise FreezeError(f"{type(head).__name__} has no frozen form")


@freeze_head.register
def _(head: heads.OrthogonalHead) -> Head:
    return LinearHead(_numpy(heads.orthogonal_weight(head.linear)), _numpy(head.linear.bias))


@freeze_head.register
def _(head: heads.NormalizedHead) -> Head:
    return LinearHead(_numpy(head.matrix()), _numpy(head.linear.bias))


@freeze_head.register
def _(head: heads.MlpHead) -> Head:
    return MlpHead.proven(
        _numpy(heads.orthogonal_weight(head.hidden)),
        _numpy(head.hidden.bias),
        _numpy(head.output.matrix()),
        _numpy(head.output.linear.bias),
    )
