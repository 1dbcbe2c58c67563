"""Layers whose symbols are made unitary frequency by frequency: Cayley and BRO.

Their systems are made Hermitian and positive definite, for Cholesky's decomposition: batches of LU
decompositions of 150 rows and more are wrong on a CPU with several threads
(github.com/pytorch/pytorch/issues/142815).
"""

import torch
from torch import Tensor, nn

from lipdeploy.training.circular import CircularLayer, Symbols, symbol_of, uniform_taps


class CayleyConvolution(CircularLayer):
    """Cayley's transform of a skew convolution (Trockman & Kolter, 2021).

    With V the convolution of the weights, scaled to a learned length, and A = V - V^T, the symbols
    are (I + A(f))^-1 (I - A(f)), unitary since A(f) is skew-Hermitian; the same as
    (I + A(f)^* A(f))^-1 (I - A(f))^2.
    """

    is_local = False

    def make_weights(self) -> None:
        """See the base class."""
        self.weight = uniform_taps(self.kernel_size, self.channels, self.channels)
        self.length = nn.Parameter(self.weight.detach().norm())

    def symbol(self, cosines: Tensor, sines: Tensor) -> Symbols:
        """See the class."""
        taps = self.weight * (self.length / self.weight.norm())
        symbol = torch.complex(*symbol_of(taps, cosines, sines))
        skew = symbol - symbol.mH
        identity = torch.eye(self.channels, dtype=symbol.dtype, device=symbol.device)
        factor = torch.linalg.cholesky(identity + skew.mH @ skew)
        turned = identity - skew
        unitary = torch.cholesky_solve(turned @ turned, factor)
        return unitary.real, unitary.imag


class BroConvolution(CircularLayer):
    """Block reflector orthogonal layer (Lai et al., 2025).

    The symbols are I - 2 V(f) (V(f)^* V(f))^-1 V(f)^*, reflections, V a convolution of c // 2
    inputs; so W is its own inverse.
    """

    is_local = False

    def make_weights(self) -> None:
        """See the base class."""
        self.weight = uniform_taps(self.kernel_size, self.channels, max(1, self.channels // 2))

    def symbol(self, cosines: Tensor, sines: Tensor) -> Symbols:
        """See the class."""
        columns = torch.complex(*symbol_of(self.weight, cosines, sines))
        factor = torch.linalg.cholesky(columns.mH @ columns)
        projection = columns @ torch.cholesky_solve(columns.mH, factor)
        identity = torch.eye(self.channels, dtype=columns.dtype, device=columns.device)
        reflection = identity - 2 * projection
        return reflection.real, reflection.imag
