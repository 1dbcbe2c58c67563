"""Linear layers in the forms that a plan chooses, from what defines them, in numpy.

An exponential of a skew kernel, or symbols: the matrices by which a circular convolution multiplies
the coefficients at each frequency. How accurate this is does not matter for a certificate, which is
proven from the frozen weights; it matters for being the same function as the trained layer.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lipdeploy.arithmetic import stored
from lipdeploy.errors import FreezeError
from lipdeploy.exporters.exponential import skew_exponential
from lipdeploy.exporters.plan import TILE, Choice, LayerShape
from lipdeploy.exporters.tiles import tiled_conv
from lipdeploy.fourier import RealFourier, offsets, symbol_factors
from lipdeploy.operators import DenseMatrix, LinearOperator, PointwiseMatrix
from lipdeploy.spectral import FusedSpectralConv, Spectral, SpectralConv
from lipdeploy.taylor import MAX_DEGREE, TaylorConv, exponential_remainder_upper
from lipdeploy.tiled import TiledConv

Array = NDArray[np.float64]
Symbols = Callable[[NDArray[np.int64], int], NDArray[np.complex128]]
"""Symbols, shape (frequencies, c_out, c_in), at frequencies (frequencies, 2) of an n x n grid."""

SPECTRAL_FORMS = (SpectralConv.form, FusedSpectralConv.form)

SERIES_TOLERANCE = 1e-12
"""Remainder of a series that is kept as one."""


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
    given = blocks | choice.multiplication
    if choice.form == "fused":
        plane = stored(fourier.plane_basis(), dtype)
        return FusedSpectralConv(plane=plane, **given)
    basis, phases = stored(fourier.paired_basis(), dtype), stored(fourier.phases(), dtype)
    return SpectralConv(basis=basis, phases=phases, **given)


def with_choice(operator: LinearOperator, choice: Choice) -> LinearOperator:
    """The same function in another spectral form, its blocks taken over; others as they are."""
    if not isinstance(operator, Spectral):
        return operator
    dtype = next(iter(operator.transforms().values())).dtype
    return spectral_operator(operator.grid, choice, operator.blocks(), dtype)


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


def symbol_operator(symbols: Symbols, shape: LayerShape, choice: Choice) -> LinearOperator:
    """A circular convolution with these symbols in the form that was chosen."""
    if choice.form in SPECTRAL_FORMS:
        return spectral_operator(shape.grid, choice, symbol_blocks(symbols, shape.grid))
    if choice.form == "pointwise":
        (constant,) = symbols(np.zeros((1, 2), dtype=np.int64), shape.grid)
        return PointwiseMatrix(shape.grid, np.ascontiguousarray(constant.real.T))
    if choice.form == "dense":
        fused = spectral_operator(shape.grid, Choice("fused"), symbol_blocks(symbols, shape.grid))
        return _as_dense(fused)
    tile = spectral_operator(TILE, Choice("spectral"), symbol_blocks(symbols, TILE))
    if choice.form == "tiled" and isinstance(tile, SpectralConv):
        return TiledConv(shape.grid, shape.kernel_size, tile)
    raise FreezeError(f"a layer that is known by its symbols has no {choice.form} form")


def symbol_blocks(symbols: Symbols, grid: int) -> dict[str, NDArray[Any]]:
    """Symbols at the independent frequencies of a grid."""
    fourier = RealFourier(grid)
    pairs = symbols(fourier.frequencies(), grid)
    return {
        "real_blocks": symbols(fourier.real_frequencies(), grid).real,
        "complex_blocks": np.stack([pairs.real, pairs.imag], axis=1),
    }


def _as_dense(operator: LinearOperator) -> DenseMatrix:
    n, c = operator.grid, operator.in_channels
    units = np.eye(n * n * c).reshape(-1, n, n, c).transpose(1, 2, 0, 3)
    columns = operator.mv(units).transpose(2, 0, 1, 3)
    return DenseMatrix(n, np.ascontiguousarray(columns.reshape(n * n * c, -1)))


def square_root_of_rest(contraction: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """(I - U U^*)^(1/2) for matrices U of norm at most 1, shape (..., m, n)."""
    gram = contraction @ np.swapaxes(contraction.conj(), -1, -2)
    values, vectors = np.linalg.eigh(np.eye(gram.shape[-1]) - gram)
    roots = np.sqrt(np.maximum(values, 0.0))
    result: NDArray[np.complex128] = (vectors * roots[..., None, :]) @ np.swapaxes(
        vectors.conj(), -1, -2
    )
    return result


@singledispatch
def mixed(operator: Any, before: Array, after: Array) -> Any:  # noqa: ANN401
    """An operator between two matrices of channels: after * operator * before.

    Args:
        operator: W.
        before: shape (c_in of W, c_in).
        after: shape (c_out, c_out of W).
    """
    raise FreezeError(f"{type(operator).__name__} cannot take up a matrix of channels")


@mixed.register
def _(operator: Spectral, before: Array, after: Array) -> Spectral:
    return replace(
        operator,
        real_blocks=after @ operator.real_blocks @ before,
        complex_blocks=after @ operator.complex_blocks @ before
        if len(operator.complex_blocks)
        else operator.complex_blocks,
    )


@mixed.register
def _(operator: TiledConv, before: Array, after: Array) -> TiledConv:
    return replace(operator, inner=mixed(operator.inner, before, after))


@mixed.register
def _(operator: PointwiseMatrix, before: Array, after: Array) -> PointwiseMatrix:
    return replace(operator, matrix=before.T @ operator.matrix @ after.T)


@mixed.register
def _(operator: DenseMatrix, before: Array, after: Array) -> DenseMatrix:
    n, c_in, c_out = operator.grid**2, operator.in_channels, operator.out_channels
    blocks = operator.matrix.reshape(n, c_in, n, c_out)
    turned = np.einsum("ij,piqo,ro->pjqr", before, blocks, after, optimize=True)
    return replace(operator, matrix=turned.reshape(n * before.shape[1], n * after.shape[0]))
