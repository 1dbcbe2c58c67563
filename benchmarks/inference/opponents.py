"""What engines are compared with, in PyTorch: the paper's series and a dense kernel of exp(A).

All kernels are prepared once. A network comes in two memory formats; the faster one counts.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from inference.networks import kernel_of
from inference.timing import fastest
from lipdeploy.training.activations import ChannelMax, MaxMin, SpaceToDepth
from lipdeploy.training.heads import MlpHead, NormalizedHead
from lipdeploy.training.lipconvnet import INPUT_GAIN, LipConvNet
from lipdeploy.training.soc import SkewOrthogonalConvolution

Pixels = NDArray[np.float32]
Logits = NDArray[np.float32]
Run = Callable[[Pixels], Logits]

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}

DENSE_SIDE = 11
"""Taps along each axis that are kept of exp(A)."""


class SeriesConvolution(nn.Module):
    """The first `terms` terms of exp(A) x, by Horner's rule: a convolution for each after x."""

    kernel: Tensor
    bias: Tensor

    def __init__(self, layer: SkewOrthogonalConvolution, terms: int) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel_of(layer.kernel()))
        self.register_buffer("bias", layer.bias[:, None, None])
        self.terms, self.circular = terms, layer.padding == "circular"
        self.missing = layer.kernel.channels - layer.in_channels
        self.out_channels, self.reach = layer.out_channels, layer.kernel.kernel_size // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, c_in, n, n) to (batch, c_out, n, n)."""
        if self.missing:
            x = functional.pad(x, (0, 0, 0, 0, 0, self.missing))
        v = x
        for k in range(self.terms - 1, 0, -1):
            v = torch.add(x, self._skew(v), alpha=1 / k)
        return v[:, : self.out_channels] + self.bias

    def _skew(self, v: Tensor) -> Tensor:
        if not self.circular:
            return functional.conv2d(v, self.kernel, padding=self.reach)
        if self.reach:
            v = functional.pad(v, (self.reach,) * 4, mode="circular")
        return functional.conv2d(v, self.kernel)


class DenseConvolution(nn.Module):
    """exp(A) as one kernel of at most 11 x 11 taps, for circular padding.

    The whole operator where the grid has no more points than taps; else what is cut off is small
    but not 0.
    """

    kernel: Tensor
    bias: Tensor

    def __init__(self, layer: SkewOrthogonalConvolution) -> None:
        super().__init__()
        if layer.padding != "circular":
            raise ValueError("with zero padding exp(A) is no convolution: another function")
        kernel = exponential_kernel(kernel_of(layer.kernel()), layer.grid)
        self.register_buffer("kernel", kernel[: layer.out_channels, : layer.in_channels].clone())
        self.register_buffer("bias", layer.bias[:, None, None])
        side = self.kernel.shape[-1]
        self.pads = (side // 2, side - 1 - side // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, c_in, n, n) to (batch, c_out, n, n)."""
        if any(self.pads):
            x = functional.pad(x, self.pads, mode="circular")
        return functional.conv2d(x, self.kernel) + self.bias


def exponential_kernel(kernel: Tensor, grid: int) -> Tensor:
    """Taps of exp(A) on a circular grid, the nearest ones; shape (c, c, s, s), s <= 11.

    A circular convolution is one matrix for each frequency, and so is its exponential.
    """
    k = kernel.shape[-1]
    n = grid if k > 1 else 1
    side = min(DENSE_SIDE, n)
    torus = torch.zeros(n, n, *kernel.shape[:2])
    for row, column in np.ndindex(k, k):
        torus[(row - k // 2) % n, (column - k // 2) % n] += kernel[:, :, row, column]
    symbol = torch.fft.rfft2(torus, dim=(0, 1))
    taps = torch.fft.irfft2(torch.linalg.matrix_exp(symbol), s=(n, n), dim=(0, 1))
    near = torch.arange(-(side // 2), side - side // 2) % n
    nearest: Tensor = taps[near][:, near]
    return nearest.permute(2, 3, 0, 1).contiguous()


class PairSort(nn.Module):
    """Maximum, and minimum unless `only_max`, of channels i and i + c/2."""

    def __init__(self, only_max: bool) -> None:
        super().__init__()
        self.only_max = only_max

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, c, n, n) to (batch, c or c/2, n, n)."""
        first, second = x.chunk(2, dim=1)
        largest = torch.maximum(first, second)
        if self.only_max:
            return largest
        return torch.cat([largest, torch.minimum(first, second)], dim=1)


class Unshuffle(nn.Module):
    """Neighbourhoods of 2 x 2 become channels; an odd grid first gets a zero row and column."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, c, n, n) to (batch, 4 c, m, m), m = ceil(n / 2)."""
        odd = x.shape[-1] % 2
        return functional.pixel_unshuffle(functional.pad(x, (0, odd, 0, odd)) if odd else x, 2)


class TorchNetwork(nn.Module):
    """A LipConvNet as an ordinary network (batch, channels, n, n) with prepared kernels.

    Args:
        network: with an "lln" or an "mlp" head.
        convolution: makes the opponent's layer of a skew orthogonal convolution.
    """

    mean: Tensor

    @torch.no_grad()
    def __init__(
        self, network: LipConvNet, convolution: Callable[[SkewOrthogonalConvolution], nn.Module]
    ) -> None:
        super().__init__()
        self.register_buffer("mean", network.mean[:, None, None])
        self.head = prepared_head(network.head)
        self.body = nn.Sequential(*(self._layer(module, convolution) for module in network.body))
        self.requires_grad_(False)

    @staticmethod
    def _layer(
        module: nn.Module, convolution: Callable[[SkewOrthogonalConvolution], nn.Module]
    ) -> nn.Module:
        if isinstance(module, SkewOrthogonalConvolution):
            return convolution(module)
        if isinstance(module, SpaceToDepth):
            return Unshuffle()
        if isinstance(module, MaxMin | ChannelMax):
            return PairSort(only_max=isinstance(module, ChannelMax))
        raise TypeError(f"no opponent has a {type(module).__name__}")

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (batch, 3, n, n), 0 ... 255, to logits."""
        features = self.body((pixels - self.mean) * (INPUT_GAIN / 255)).flatten(1)
        logits: Tensor = self.head(features)
        return logits


def prepared_head(head: nn.Module) -> nn.Module:
    """A head as ordinary layers: no weight is normalised or orthogonalised any more."""
    if isinstance(head, NormalizedHead):
        return prepared_linear(head.matrix(), head.linear.bias)
    if isinstance(head, MlpHead):
        hidden = prepared_linear(head.hidden.weight, head.hidden.bias)
        return nn.Sequential(hidden, nn.Softplus(), prepared_head(head.output))
    raise TypeError(f"a head of type {type(head).__name__}, expected lln or mlp")


def prepared_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer with these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


SERIES_15, SERIES_6, DENSE = "PyTorch, 15 terms", "PyTorch, 6 terms", "PyTorch, dense 11x11"
MODULES: dict[str, Callable[[LipConvNet], nn.Module]] = {
    SERIES_15: lambda network: TorchNetwork(network, lambda layer: SeriesConvolution(layer, 15)),
    SERIES_6: lambda network: TorchNetwork(network, lambda layer: SeriesConvolution(layer, 6)),
    DENSE: lambda network: TorchNetwork(network, DenseConvolution),
}
"""How each opponent is made of a trained network."""


@dataclass(frozen=True)
class Opponent:
    """Something that maps pixels to logits.

    Attributes:
        kind: how it runs: a memory format of PyTorch, or a runtime.
        run: from numpy to numpy.
        weights: bytes of its weights.
        save: writes what `memory.open_saved` needs to run it in another process.
    """

    kind: str
    run: Run
    weights: int
    save: Callable[[Path], object]


def torch_run(module: nn.Module, kind: str, device: str = "cpu") -> Run:
    """A network in one of `FORMATS`, from numpy to numpy."""
    # A copy: changing the format of a module changes the module.
    moved = copy.deepcopy(module).eval().to(device=device)
    moved.to(memory_format=FORMATS[kind])  # type: ignore[call-overload]  # stubs know less

    @torch.inference_mode()
    def run(pixels: Pixels) -> Logits:
        x = torch.from_numpy(pixels).to(device).contiguous(memory_format=FORMATS[kind])
        logits: Logits = moved(x).cpu().numpy()
        return logits

    return run


def torch_opponents(module: nn.Module, device: str = "cpu") -> list[Opponent]:
    """A network in each memory format."""
    size = sum(value.nbytes for value in module.state_dict().values())
    save = partial(torch.save, module)
    return [Opponent(kind, torch_run(module, kind, device), size, save) for kind in FORMATS]


def fastest_of(ways: list[Opponent], pixels: Pixels) -> Opponent:
    """The one that is fastest on these pixels."""
    by_kind = {way.kind: way for way in ways}
    return by_kind[fastest({kind: partial(way.run, pixels) for kind, way in by_kind.items()})]
