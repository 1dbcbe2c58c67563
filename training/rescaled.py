"""Convolutions that are 1-Lipschitz because their columns are rescaled: AOL and SLL."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdeploy.training.circular import (
    CircularLayer,
    KernelLayer,
    Symbols,
    complex_product,
    padded,
    symbol_of,
    uniform_taps,
)


def gram_sums(taps: Tensor, weights: Tensor) -> Tensor:
    """Row sums of |V^T V| with weights: sum over j and offsets of |(V^T V)_ij| w_j / w_i.

    V is the convolution with these taps; on a small circular grid offsets coincide, which makes
    the true sums smaller.

    Args:
        taps: shape (k*k, outputs, inputs).
        weights: positive, shape (inputs,).

    Returns:
        Shape (inputs,); never 0.
    """
    k = round(len(taps) ** 0.5)
    kernels = taps.permute(2, 1, 0).reshape(taps.shape[2], taps.shape[1], k, k)
    gram = functional.conv2d(kernels, kernels, padding=k - 1).abs().sum(dim=(2, 3))
    sums = (gram * (weights[None, :] / weights[:, None])).sum(dim=1)
    return sums.clamp_min(torch.finfo(sums.dtype).tiny ** 0.5)


class AolConvolution(KernelLayer):
    """Almost-orthogonal layer (Prach & Lampert, 2022): V D, D_jj = (sum_i |V^T V|_ij)^(-1/2)."""

    is_orthogonal = False

    def make_weights(self) -> None:
        """See the base class."""
        # A single tap that keeps its channel is orthogonal; training starts near it.
        self.weight = uniform_taps(self.kernel_size, self.channels, self.channels)
        with torch.no_grad():
            self.weight.mul_(0.1)[self.kernel_size**2 // 2].add_(torch.eye(self.channels))

    def taps(self) -> Tensor:
        """The taps of V D, shape (k*k, c, c)."""
        sums = gram_sums(self.weight, self.weight.new_ones(self.channels))
        return self.weight * sums.rsqrt()


class SllConvolution(CircularLayer):
    """SDP-based Lipschitz layer (Araujo et al., 2023): y = x - 2 V T^-1 relu(V^T x + b).

    T is diagonal with T_ii = sum_j |V^T V|_ij q_j / q_i, hence V^T V <= T, and the layer, which
    brings its own nonlinearity, is 1-Lipschitz. With U = V T^(-1/2), a contraction, and
    c = T^(-1/2) b it is y = x - 2 U relu(U^T x + c). Channels are padded and dropped as elsewhere.
    """

    is_orthogonal = False
    is_local = False

    def make_weights(self) -> None:
        """See the base class."""
        self.weight = uniform_taps(self.kernel_size, self.channels, self.channels)
        self.log_weights = nn.Parameter(torch.zeros(self.channels))
        self.bias = nn.Parameter(torch.zeros(self.channels))

    def contraction(self) -> tuple[Tensor, Tensor]:
        """The taps of U, shape (k*k, c, c), and the offsets c, shape (c,)."""
        scales = gram_sums(self.weight, self.log_weights.exp()).rsqrt()
        return self.weight * scales, self.bias * scales

    def symbol(self, cosines: Tensor, sines: Tensor) -> Symbols:
        """The symbols of U."""
        return symbol_of(self.contraction()[0], cosines, sines)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x of shape (n, n, batch, in_channels)."""
        taps, offsets = self.contraction()
        x = padded(x, self.channels)
        inside = self._applied(taps, x, transposed=True) + offsets.to(x.dtype)
        y = x - 2 * self._applied(taps, inside.relu(), transposed=False)
        return y[..., : self.out_channels]

    def _applied(self, taps: Tensor, x: Tensor, *, transposed: bool) -> Tensor:
        pairs, mirror = self.frequencies.split(x)
        matrices, _ = symbol_of(taps, *self._factors("mirror"))
        first, second = symbol_of(taps, *self._factors("pair"))
        if transposed:
            matrices, first, second = matrices.mT, first.mT, -second.mT
        mirror = mirror @ matrices.to(x.dtype).mT
        if len(pairs):
            pairs = complex_product(pairs, (first, second))
        return self.frequencies.join(pairs, mirror)
