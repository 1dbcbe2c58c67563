"""The real Fourier transform of grids: what layers apply frequency by frequency.

The transform is an isometry onto its image, so the gradient of one direction is the other: neither
has to be taken apart by autograd, which would fill a whole grid with zeros for every slice.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lipdeploy.fourier import RealFourier

EDGE_SCALE = 2**0.25
"""Interior rows of the basis are scaled by the inverse of this, which makes the butterfly of
additions an isometry; what has one interior axis only is scaled back."""

Coefficients = tuple[Tensor, Tensor]
"""Of the complex frequencies, shape (count, batch, 2, c), real parts before imaginary ones, and of
the real frequencies, shape (edge**2, batch, c)."""


class Frequencies(nn.Module):
    """Coefficients of an n x n grid at its independent frequencies, and back.

    Args:
        grid: side n of the grid.
    """

    basis: Tensor

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid
        fourier = RealFourier(grid)
        basis = torch.from_numpy(fourier.basis())
        basis[fourier.edge :] /= EDGE_SCALE
        self.register_buffer("basis", basis, persistent=False)

    def split(self, x: Tensor) -> Coefficients:
        """The coefficients of x, shape (n, n, batch, c)."""
        return _split(x, self.basis.to(x.dtype))

    def join(self, pairs: Tensor, mirror: Tensor) -> Tensor:
        """Undo `split`."""
        return _join(pairs, mirror, self.basis.to(mirror.dtype))


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, basis: Tensor) -> Coefficients:  # noqa: ANN401
        ctx.save_for_backward(basis)
        return _analysed(x, basis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (basis,) = ctx.saved_tensors
        pairs, mirror = gradients
        return _synthesised(pairs, mirror, basis), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Tensor, mirror: Tensor, basis: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(basis)
        return _synthesised(pairs, mirror, basis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        (basis,) = ctx.saved_tensors
        return *_analysed(gradients[0], basis), None


_split: Callable[[Tensor, Tensor], Coefficients] = _Split.apply
_join: Callable[[Tensor, Tensor, Tensor], Tensor] = _Join.apply


def _analysed(x: Tensor, basis: Tensor) -> Coefficients:
    """The coefficients of x, shape (n, n, batch, c); see `lipdeploy.fourier` for the butterfly."""
    n, shape = len(basis), x.shape
    rows = basis @ x.reshape(n, -1)
    grid = torch.matmul(basis, rows.view(n, n, -1)).view(shape)
    e, c, s = RealFourier(n).parts
    pairs = x.new_empty(len(RealFourier(n).complex_frequencies()), shape[2], 2, shape[3])
    for (real, imaginary), first, second in zip(
        _edges(pairs, n), (grid[e, c], grid[c, e]), (grid[e, s], grid[s, e]), strict=True
    ):
        torch.mul(first, EDGE_SCALE, out=real)
        torch.mul(second, EDGE_SCALE, out=imaginary)
    (plus, plus_i), (minus, minus_i) = _interiors(pairs, n)
    torch.sub(grid[c, c], grid[s, s], out=plus)
    torch.add(grid[c, c], grid[s, s], out=minus)
    torch.add(grid[c, s], grid[s, c], out=plus_i)
    torch.sub(grid[s, c], grid[c, s], out=minus_i)
    return pairs, grid[e, e].flatten(0, 1).contiguous()


def _synthesised(pairs: Tensor, mirror: Tensor, basis: Tensor) -> Tensor:
    """Undo `_analysed`; also its transpose."""
    n, (_, batch, channels) = len(basis), mirror.shape
    grid = mirror.new_empty(n, n, batch, channels)
    e, c, s = RealFourier(n).parts
    grid[e, e] = mirror.view(grid[e, e].shape)
    for (real, imaginary), first, second in zip(
        _edges(pairs, n), (grid[e, c], grid[c, e]), (grid[e, s], grid[s, e]), strict=True
    ):
        torch.mul(real, EDGE_SCALE, out=first)
        torch.mul(imaginary, EDGE_SCALE, out=second)
    (plus, plus_i), (minus, minus_i) = _interiors(pairs, n)
    torch.add(plus, minus, out=grid[c, c])
    torch.sub(minus, plus, out=grid[s, s])
    torch.sub(plus_i, minus_i, out=grid[c, s])
    torch.add(plus_i, minus_i, out=grid[s, c])
    columns = torch.matmul(basis.T, grid.view(n, n, -1))
    return (basis.T @ columns.view(n, -1)).view(grid.shape)


def _edges(pairs: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    """Views of real and imaginary parts where one axis is interior: (e, h), then (h, e)."""
    e, h = RealFourier(n).edge, RealFourier(n).interior
    parts = pairs[: 2 * e * h]
    return [_views(parts[: e * h], e, h), _views(parts[e * h :], h, e)]


def _interiors(pairs: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    """The same where both are: frequencies (k1, k2), then (k1, -k2)."""
    e, h = RealFourier(n).edge, RealFourier(n).interior
    parts = pairs[2 * e * h :]
    return [_views(parts[: h * h], h, h), _views(parts[h * h :], h, h)]


def _views(parts: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    grid = parts.view(height, width, *parts.shape[1:])
    return grid[..., 0, :], grid[..., 1, :]
