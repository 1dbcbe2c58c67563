"""The paper's way to train a LipConvNet, as an opponent: fast SOC in float32, ordinary layout.

Zero-padded convolutions on (batch, channels, n, n), six terms, the fast gradient (Singla & Feizi,
2022), in the memory format that is faster. It shares its weights with the network that it is made
of. Norms of the kernels are estimated from two unfoldings, not four as in the paper, which is in
its favour.
"""

import torch
from inference.opponents import PairSort, Unshuffle
from torch import Tensor, nn
from torch.nn import functional

from lipdeploy.training.activations import ChannelMax, MaxMin, SpaceToDepth
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.series import ZeroPaddedConvolution, apply_exponential
from lipdeploy.training.soc import TRAINING_DEGREE, SkewOrthogonalConvolution


class PaperConvolution(nn.Module):
    """exp(A) x + b by six terms, A a zero-padded convolution."""

    def __init__(self, layer: SkewOrthogonalConvolution) -> None:
        super().__init__()
        self.kernel, self.bias = layer.kernel, layer.bias
        self.missing = layer.kernel.channels - layer.in_channels
        self.out_channels = layer.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, c_in, n, n) to (batch, c_out, n, n)."""
        taps, k = self.kernel(), self.kernel.kernel_size
        kernel = taps.permute(1, 2, 0).reshape(*taps.shape[1:], k, k)
        if x.is_contiguous(memory_format=torch.channels_last):
            kernel = kernel.contiguous(memory_format=torch.channels_last)
        if self.missing:
            x = functional.pad(x, (0, 0, 0, 0, 0, self.missing))
        y = apply_exponential(ZeroPaddedConvolution(), kernel, x, TRAINING_DEGREE)
        return y[:, : self.out_channels] + self.bias[:, None, None]


class PaperNetwork(nn.Module):
    """A LipConvNet in the paper's way; `features` and `forward` as there.

    Args:
        network: a network of skew orthogonal convolutions.
        memory_format: of the images.
    """

    def __init__(self, network: LipConvNet, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.network, self.memory_format = network, memory_format
        self.body = nn.Sequential(*(self._layer(module) for module in network.body))

    @staticmethod
    def _layer(module: nn.Module) -> nn.Module:
        if isinstance(module, SkewOrthogonalConvolution):
            return PaperConvolution(module)
        if isinstance(module, SpaceToDepth):
            return Unshuffle()
        if isinstance(module, MaxMin | ChannelMax):
            return PairSort(only_max=isinstance(module, ChannelMax))
        raise TypeError(f"the paper's networks have no {type(module).__name__}")

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (batch, 3, n, n), 0 ... 255, to logits."""
        x = self.network.normalize(pixels).contiguous(memory_format=self.memory_format)
        logits: Tensor = self.network.head(self.body(x).flatten(1))
        return logits
