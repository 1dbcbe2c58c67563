"""Circular convolutions that are known by their symbols, in grid-first layout.

A layer maps (n, n, batch, c_in) to (n, n, batch, c_out) by y = W x + b, W a circular convolution of
c = max(c_in, c_out) channels: the input is padded with zero channels and surplus output channels
are dropped. At frequency f the coefficients of x are multiplied by the c x c matrix W(f), the
symbol; W is 1-Lipschitz where all symbols are, and orthogonal where all are unitary. Unlike the
exponential of `lipdeploy.training.soc` the symbol is exact, and autograd gives its gradient.
"""

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdeploy.fourier import RealFourier, symbol_factors
from lipdeploy.training.frequencies import Frequencies

Symbols = tuple[Tensor, Tensor]
"""Real and imaginary parts at some frequencies, shape (frequencies, outputs, inputs) each."""


class CircularLayer(nn.Module):
    """What all of them share.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        grid: side n of the square grid.
        kernel_size: side of the kernel of weights, 1 or another odd number.
        strided: whether the input comes from space-to-depth, so that its channels are (c, 2, 2).

    Attributes:
        is_orthogonal: whether all symbols are unitary.
        is_local: whether W itself has few taps, not only the kernel that it is made of.
    """

    is_orthogonal = True
    is_local = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        grid: int,
        kernel_size: int = 3,
        *,
        strided: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.in_channels, self.out_channels, self.grid = in_channels, out_channels, grid
        self.kernel_size, self.strided = kernel_size, strided
        self.channels = max(in_channels, out_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.frequencies = Frequencies(grid)
        fourier = RealFourier(grid)
        self._register("mirror", fourier.real_frequencies())
        self._register("pair", fourier.complex_frequencies())
        self.make_weights()

    @abstractmethod
    def make_weights(self) -> None:
        """Make the parameters that W is made of; all sizes are known."""

    def _register(self, name: str, frequencies: np.ndarray) -> None:
        factors = symbol_factors(frequencies, self.kernel_size, self.grid)
        for part, values in zip(("cosines", "sines"), factors, strict=True):
            self.register_buffer(f"{name}_{part}", torch.from_numpy(values), persistent=False)

    @abstractmethod
    def symbol(self, cosines: Tensor, sines: Tensor) -> Symbols:
        """The symbols of W, c x c.

        Args:
            cosines: real parts of the factors of all taps of a kernel, shape (frequencies, k*k),
                see `lipdeploy.fourier.symbol_factors`.
            sines: imaginary parts.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x of shape (n, n, batch, in_channels)."""
        pairs, mirror = self.frequencies.split(x)
        matrices, _ = self._kept(self.symbol(*self._factors("mirror")))
        mirror = mirror @ matrices.to(x.dtype).transpose(1, 2)
        if len(pairs):
            pairs = complex_product(pairs, self._kept(self.symbol(*self._factors("pair"))))
        else:
            pairs = pairs.new_empty(0, *pairs.shape[1:3], self.out_channels)
        return self.frequencies.join(pairs, mirror) + self.bias.to(x.dtype)

    def _factors(self, name: str) -> Symbols:
        like = self.bias
        return (
            self.get_buffer(f"{name}_cosines").to(like),
            self.get_buffer(f"{name}_sines").to(like),
        )

    def _kept(self, symbols: Symbols) -> Symbols:
        """Rows and columns of channels that exist."""
        first, second = (part[:, : self.out_channels, : self.in_channels] for part in symbols)
        return first, second


def complex_product(pairs: Tensor, symbols: Symbols) -> Tensor:
    """Rows of complex numbers, shape (frequencies, n, 2, c_in), times matrices.

    Args:
        pairs: real parts, then imaginary ones.
        symbols: shape (frequencies, c_out, c_in) each.
    """
    first, second = (part.to(pairs.dtype).transpose(1, 2) for part in symbols)
    upper = torch.cat([first, second], dim=2)
    matrices = torch.cat([upper, torch.cat([-second, first], dim=2)], dim=1)
    return (pairs.flatten(2) @ matrices).view(*pairs.shape[:3], -1)


class KernelLayer(CircularLayer):
    """A layer whose W is given by its taps."""

    @abstractmethod
    def taps(self) -> Tensor:
        """The taps of W, shape (k*k, c, c), axes (tap, output, input)."""

    def symbol(self, cosines: Tensor, sines: Tensor) -> Symbols:
        """The taps transformed."""
        return symbol_of(self.taps(), cosines, sines)


def symbol_of(taps: Tensor, cosines: Tensor, sines: Tensor) -> Symbols:
    """The symbols of a kernel of taps, shape (k*k, outputs, inputs)."""
    factors = cosines.to(taps), sines.to(taps)
    first, second = (torch.tensordot(factor, taps, dims=1) for factor in factors)
    return first, second


def uniform_taps(kernel_size: int, *channels: int) -> nn.Parameter:
    """A kernel of weights, shape (k*k, outputs, inputs), in the range of torch's convolutions."""
    reach = (kernel_size**2 * channels[-1]) ** -0.5
    return nn.Parameter(torch.empty(kernel_size**2, *channels).uniform_(-reach, reach))


def orthonormal(raw: Tensor) -> Tensor:
    """Orthonormal columns that span what those of `raw` do, the first i what its first i do.

    Q of a QR decomposition with positive diagonal, which is a smooth function of a matrix of full
    rank.

    Args:
        raw: shape (..., m, n), m >= n.
    """
    q, r = torch.linalg.qr(raw)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(raw)
    columns: Tensor = q * signs.unsqueeze(-2)
    return columns


def padded(x: Tensor, channels: int) -> Tensor:
    """X, shape (..., c), with zero channels behind."""
    return functional.pad(x, (0, channels - x.shape[-1]))
