"""The real Fourier transform of grids, as a module: what layers apply frequency by frequency."""

import math

import torch
from torch import Tensor, nn

from lipdeploy.fourier import RealFourier


class Frequencies(nn.Module):
    """Coefficients of an n x n grid at its independent frequencies, and back; an isometry.

    Args:
        grid: side n of the grid.
    """

    basis: Tensor

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid
        basis = torch.from_numpy(RealFourier(grid).basis())
        self.register_buffer("basis", basis, persistent=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of x, shape (n, n, batch, c), as `split_frequencies` sorts them."""
        n, basis = self.grid, self.basis.to(x.dtype)
        rows = basis @ x.reshape(n, -1)
        return split_frequencies((basis @ rows.view(n, n, -1)).view(x.shape))

    def join(self, real: Tensor, imaginary: Tensor, self_mirror: Tensor) -> Tensor:
        """Undo `split`."""
        n, basis = self.grid, self.basis.to(real.dtype).T
        x = join_frequencies(real, imaginary, self_mirror, n)
        columns = basis @ x.view(n, n, -1)
        return (basis @ columns.view(n, -1)).view(x.shape)


def split_frequencies(coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the coefficients of an n x n grid by frequency (see `lipdeploy.fourier`).

    The butterfly is scaled by sqrt(1/2), so the map is an isometry.

    Args:
        coefficients: shape (n, n, batch, c).

    Returns:
        Real parts and imaginary parts of the complex frequencies, (count, batch, c) each, and the
        real frequencies, (edge**2, batch, c).
    """
    e, c, s = RealFourier(coefficients.shape[0]).parts
    half = math.sqrt(0.5)
    cc, ss = coefficients[c, c] * half, coefficients[s, s] * half
    cs, sc = coefficients[c, s] * half, coefficients[s, c] * half
    real = [coefficients[e, c], coefficients[c, e], cc - ss, cc + ss]
    imaginary = [coefficients[e, s], coefficients[s, e], cs + sc, sc - cs]
    return _stack(real), _stack(imaginary), coefficients[e, e].flatten(0, 1)


def _stack(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten(0, 1) for part in parts])


def join_frequencies(real: Tensor, imaginary: Tensor, self_mirror: Tensor, n: int) -> Tensor:
    """Undo `split_frequencies`; returns coefficients of shape (n, n, batch, c)."""
    fourier = RealFourier(n)
    e, h, half = fourier.edge, fourier.interior, math.sqrt(0.5)
    sizes = [e * h, h * e, h * h, h * h]
    ec, ce, plus, minus = real.split(sizes)
    es, se, plus_i, minus_i = imaginary.split(sizes)
    cc, ss = (plus + minus) * half, (minus - plus) * half
    cs, sc = (plus_i - minus_i) * half, (plus_i + minus_i) * half

    def block(values: Tensor, height: int, width: int) -> Tensor:
        return values.reshape(height, width, *values.shape[1:])

    top = torch.cat([block(self_mirror, e, e), block(ec, e, h), block(es, e, h)], dim=1)
    middle = torch.cat([block(ce, h, e), block(cc, h, h), block(cs, h, h)], dim=1)
    bottom = torch.cat([block(se, h, e), block(sc, h, h), block(ss, h, h)], dim=1)
    return torch.cat([top, middle, bottom])
