"""From a trained torch network to a FrozenNetwork: every matrix exponential becomes one operator.

Computed in float64 from the trained float32 weights. How accurate the exponentials are does not
matter for a certificate, which is proven from the frozen weights; it matters for being the same
function as the trained network.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import singledispatch
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from torch import Tensor, nn

from lipdeploy import frozen
from lipdeploy.arithmetic import stored
from lipdeploy.errors import FreezeError
from lipdeploy.exporters.exponential import skew_exponential
from lipdeploy.exporters.onnx_cost import CostModel
from lipdeploy.exporters.plan import Choice, FormChoice, LayerShape, Target, make_plan
from lipdeploy.exporters.tiles import tiled_conv
from lipdeploy.fourier import RealFourier, offsets, symbol_factors
from lipdeploy.heads import Head, LinearHead
from lipdeploy.mlp_head import MlpHead
from lipdeploy.operators import DenseMatrix, LinearOperator, PointwiseMatrix
from lipdeploy.spectral import FusedSpectralConv, Spectral, SpectralConv
from lipdeploy.taylor import MAX_DEGREE, TaylorConv, exponential_remainder_upper
from lipdeploy.training import activations, heads
from lipdeploy.training.lipconvnet import INPUT_GAIN, LipConvNet
from lipdeploy.training.soc import SkewOrthogonalConvolution

Array = NDArray[np.float64]

SPECTRAL_FORMS = (SpectralConv.form, FusedSpectralConv.form)

SERIES_TOLERANCE = 1e-12
"""Remainder of a series that is kept as one."""


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
    shapes = layer_shapes(network)
    if plan is None:
        plan = make_plan(shapes, form, Target(), CostModel())
    network = copy.deepcopy(network).double()
    operations: list[frozen.Operation] = []
    layers = iter(zip(shapes, plan, strict=True))
    for module in network.body:
        if isinstance(module, SkewOrthogonalConvolution):
            operations.append(freeze_layer(module, *next(layers)))
            progress(sum(isinstance(op, frozen.Linear) for op in operations), len(plan))
        else:
            operations.append(freeze_module(module))
    operations[:1] = _fold_normalisation(operations[0], network)
    size = network.architecture.image_size
    return frozen.FrozenNetwork(size, tuple(operations), freeze_head(network.head))


def layer_shapes(network: LipConvNet) -> tuple[LayerShape, ...]:
    """What a plan needs to know of each linear layer, first to last."""
    modules = list(network.body)
    shapes = []
    for index, module in enumerate(modules):
        if not isinstance(module, SkewOrthogonalConvolution):
            continue
        rest = modules[index + 1 :]
        following = takewhile(lambda m: not isinstance(m, SkewOrthogonalConvolution), rest)
        shapes.append(
            LayerShape(
                module.grid,
                module.in_channels,
                module.out_channels,
                module.kernel.kernel_size,
                module.padding,
                cells=index > 0 and isinstance(modules[index - 1], activations.SpaceToDepth),
                cut=any(isinstance(after, activations.SpaceToDepth) for after in following),
            )
        )
    return tuple(shapes)


def freeze_layer(
    module: SkewOrthogonalConvolution, shape: LayerShape, choice: Choice
) -> frozen.Linear:
    """The frozen form of one linear layer."""
    operator = freeze_kernel(_numpy(module.kernel()), shape, choice)
    return frozen.Linear(operator, _numpy(module.bias))


def freeze_kernel(taps: Array, shape: LayerShape, choice: Choice) -> LinearOperator:
    """The exponential of a skew kernel, shape (k*k, c, c), in the form that was chosen."""
    if choice.form in SPECTRAL_FORMS:
        return spectral_operator(shape.grid, choice, spectral_blocks(taps, shape))
    return _BUILDERS[choice.form](taps, shape)


def spectral_operator(
    grid: int, choice: Choice, blocks: dict[str, NDArray[Any]], dtype: DTypeLike = np.float64
) -> Spectral:
    """A circular convolution with these blocks, its transforms rounded to `dtype`."""
    fourier = RealFourier(grid)
    if choice.form == "fused":
        plane = stored(fourier.plane_basis(), dtype)
        return FusedSpectralConv(plane=plane, **blocks, copies=choice.copies)
    basis, phases = stored(fourier.paired_basis(), dtype), stored(fourier.phases(), dtype)
    return SpectralConv(basis=basis, phases=phases, **blocks, copies=choice.copies)


def with_choice(operator: LinearOperator, choice: Choice) -> LinearOperator:
    """The same function in another spectral form, its blocks taken over; others as they are."""
    if not isinstance(operator, Spectral):
        return operator
    dtype = next(iter(operator.transforms().values())).dtype
    return spectral_operator(operator.grid, choice, operator.blocks(), dtype)


@singledispatch
def freeze_module(module: nn.Module) -> frozen.Operation:
    """The frozen operation of one module of the body that has no weights."""
    raise FreezeError(f"{type(module).__name__} has no frozen form")


@freeze_module.register
def _(module: activations.MaxMin) -> frozen.Operation:
    return frozen.MaxMin()


@freeze_module.register
def _(module: activations.ChannelMax) -> frozen.Operation:
    return frozen.ChannelMax()


@freeze_module.register
def _(module: activations.SpaceToDepth) -> frozen.Operation:
    return frozen.SpaceToDepth()


def _numpy(tensor: Tensor | nn.Module) -> Array:
    if not isinstance(tensor, Tensor):
        raise FreezeError(f"{type(tensor).__name__} is no tensor")
    return tensor.detach().cpu().double().numpy()


def _right(blocks: NDArray[Any], shape: LayerShape) -> NDArray[Any]:
    """Rows and columns of channels that exist, transposed to act from the right."""
    kept = blocks[..., : shape.out_channels, : shape.in_channels]
    return np.ascontiguousarray(np.swapaxes(kept, -1, -2))


def pointwise_matrix(taps: Array, shape: LayerShape) -> PointwiseMatrix:
    """Exp of the sum of the taps: a 1 x 1 kernel, or any circular kernel on a single point."""
    return PointwiseMatrix(shape.grid, _right(skew_exponential(taps.sum(axis=0)), shape))


def spectral_blocks(taps: Array, shape: LayerShape) -> dict[str, Array]:
    """Exponentials of the independent half of the frequencies, channels that exist."""
    fourier = RealFourier(shape.grid)
    real, _ = symbol_factors(fourier.real_frequencies(), shape.kernel_size, shape.grid)
    factors = symbol_factors(fourier.frequencies(), shape.kernel_size, shape.grid)
    cosine, sine = (np.tensordot(factor, taps, axes=1) for factor in factors)
    kept = (..., slice(shape.out_channels), slice(shape.in_channels))
    rotations = skew_exponential(cosine + 1j * sine)[kept]
    return {
        "real_blocks": skew_exponential(np.tensordot(real, taps, axes=1))[kept],
        "complex_blocks": np.stack([rotations.real, rotations.imag], axis=1),
    }


def dense_skew(taps: Array, shape: LayerShape) -> Array:
    """The skew convolution as one matrix on flattened (row, column, channel), either padding."""
    n, channels = shape.grid, taps.shape[1]
    grid = np.zeros((n, n, channels, n, n, channels))
    for (down, right), tap in zip(offsets(shape.kernel_size), taps, strict=True):
        for row, column in np.ndindex(n, n):
            source = row + down, column + right
            if shape.padding == "circular":
                source = source[0] % n, source[1] % n
            elif not (0 <= source[0] < n and 0 <= source[1] < n):
                continue
            grid[row, column, :, source[0], source[1], :] += tap
    return grid.reshape(n * n * channels, -1)


def dense_matrix(taps: Array, shape: LayerShape) -> DenseMatrix:
    """Exp of the whole skew matrix; exact for either padding."""
    n, channels = shape.grid, taps.shape[1]
    rotation = skew_exponential(dense_skew(taps, shape)).reshape(n * n, channels, n * n, channels)
    kept = rotation[:, : shape.out_channels, :, : shape.in_channels]
    rows = kept.reshape(n * n * shape.out_channels, n * n * shape.in_channels)
    return DenseMatrix(n, np.ascontiguousarray(rows.T))


def taylor_conv(taps: Array, shape: LayerShape) -> TaylorConv:
    """The series of a zero-padded layer, to the degree that `SERIES_TOLERANCE` needs."""
    series = TaylorConv(shape.grid, shape.in_channels, shape.out_channels, taps, degree=1)
    for degree in range(4, MAX_DEGREE):
        if exponential_remainder_upper(series.skew_norm_upper, degree) <= SERIES_TOLERANCE:
            return replace(series, degree=degree)
    raise FreezeError(
        f"a skew convolution of norm {series.skew_norm_upper:.3g} needs more than {MAX_DEGREE} "
        "terms; train again, or use --form dense"
    )


_BUILDERS: dict[str, Callable[[Array, LayerShape], LinearOperator]] = {
    "pointwise": pointwise_matrix,
    "tiled": tiled_conv,
    "dense": dense_matrix,
    "taylor": taylor_conv,
}


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
