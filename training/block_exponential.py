"""exp(A) x for families of small skew blocks, by forming the exponential first.

The series of `lipdeploy.training.series` costs eleven products of a block with all rows of x in a
step, forward and backward. Where there are more rows than channels it is cheaper to form
T(A) = sum_{k <= 5} A^k / k! and phi(A) = (T(A) - I) / A once, by three products of blocks: then
y = x T(A), the gradient of x is g T(A)^T, and the fast gradient of A,
(x phi(A))^T (g phi(-A)) = phi(A)^T (x^T g) phi(A)^T, needs x^T g and two more products of blocks.
It is the same gradient.

A complex block C + i S acts on rows (a, b) of real and imaginary parts as [[C, S], [-S, C]]. Only
the upper half [C, S] is ever computed: that of a product M N is (upper half of M) N.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Kept = tuple[int, int]
"""Channels of rows and columns that exist; the first ones."""

BLOCK_PRODUCTS = 5
"""Products of blocks in a step, each of a half with a whole where blocks are complex."""

ROW_PRODUCTS, SERIES_PRODUCTS = 3, 11
"""Products of a block with all rows in a step, here and in the series."""


def is_cheaper(rows: int, upper: tuple[int, ...]) -> bool:
    """Whether forming the exponential takes fewer multiplications than the series.

    Args:
        rows: of x, for each block.
        upper: shape of the upper halves, (f, c, c) or (f, c, 2 c).
    """
    _, channels, side = upper
    formed = ROW_PRODUCTS * rows * side + BLOCK_PRODUCTS * channels * side
    return formed < SERIES_PRODUCTS * rows * side


def whole(upper: Tensor) -> Tensor:
    """Blocks from their upper halves: (f, c, c) as they are, (f, c, 2 c) to (f, 2 c, 2 c)."""
    channels = upper.shape[1]
    if upper.shape[2] == channels:
        return upper
    real, imaginary = upper.split(channels, dim=2)
    return torch.cat([upper, torch.cat([-imaginary, real], dim=2)], dim=1)


def _upper(blocks: Tensor, channels: int) -> Tensor:
    """Upper half of twice the nearest [[C, S], [-S, C]]; blocks without parts as they are."""
    if blocks.shape[2] == channels:
        return blocks
    top, bottom = blocks.split(channels, dim=1)
    return torch.cat(
        [
            top[..., :channels] + bottom[..., channels:],
            top[..., channels:] - bottom[..., :channels],
        ],
        dim=2,
    )


def _kept(blocks: Tensor, channels: int, kept: Kept) -> Tensor:
    """Rows and columns of channels that exist, of blocks of one or two parts."""
    parts = blocks.shape[1] // channels
    shape = (len(blocks), parts, channels, parts, channels)
    existing = blocks.view(shape)[:, :, : kept[0], :, : kept[1]]
    return existing.reshape(len(blocks), parts * kept[0], parts * kept[1])


def _spread(blocks: Tensor, channels: int, kept: Kept) -> Tensor:
    """Undo `_kept`, zeros elsewhere."""
    parts = blocks.shape[1] // kept[0]
    full = blocks.new_zeros(len(blocks), parts, channels, parts, channels)
    full[:, :, : kept[0], :, : kept[1]] = blocks.view(len(blocks), parts, kept[0], parts, kept[1])
    return full.view(len(blocks), parts * channels, parts * channels)


def series_of_blocks(upper: Tensor) -> tuple[Tensor, Tensor]:
    """Upper halves of phi(A) and T(A), degrees 4 and 5, of blocks given by theirs."""
    square = upper @ whole(upper)
    identity = torch.eye(*upper.shape[1:], dtype=upper.dtype, device=upper.device)
    high = (upper / 24 + square / 120) @ whole(square)
    average = high.add_(identity).add_(upper, alpha=1 / 2).add_(square, alpha=1 / 6)
    return average, (upper @ whole(average)).add_(identity)


class _BlockExponential(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch leaves the type of a context open
        upper: Tensor,
        x: Tensor,
        kept: Kept,
    ) -> Tensor:
        channels = upper.shape[1]
        average, rotation = series_of_blocks(upper)
        existing = _kept(whole(rotation), channels, kept)
        ctx.save_for_backward(average, existing, x)
        ctx.kept = kept
        return x @ existing

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        average, existing, x = ctx.saved_tensors
        (gradient,) = gradients
        channels = average.shape[1]
        outer = _spread(x.mT @ gradient, channels, ctx.kept)
        averages = whole(average).mT
        left = averages[:, :channels] @ whole(_upper(outer, channels))
        return left @ averages, gradient @ existing.mT, None


_block_exponential: Callable[[Tensor, Tensor, Kept], Tensor] = _BlockExponential.apply


def apply_block_exponential(upper: Tensor, x: Tensor, kept: Kept) -> Tensor:
    """X T(A), T of degree 5, with the fast gradient.

    Args:
        upper: upper halves of skew blocks, (f, c, c) or (f, c, 2 c).
        x: rows of channels that exist, (f, n, c_in) or (f, n, 2 c_in), real parts first.
        kept: channels of x and of the result.

    Returns:
        Shape (f, n, c_out) or (f, n, 2 c_out).
    """
    return _block_exponential(upper, x, kept)
