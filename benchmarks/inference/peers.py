"""Other 1-Lipschitz libraries: networks of the same width and depth, as they are exported.

They have weights of their own, so they compute other functions, and zero padding, which is the
fastest. A strided 3 x 3 convolution halves the grid.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from inference.plain import network_of
from lipdeploy.training.architecture import Architecture


def orthogonium(architecture: Architecture, convolution: Callable[..., Any]) -> nn.Module:
    """A network of orthogonium's layers, each replaced by a plain one with its kernel."""
    from orthogonium.layers import MaxMin, OrthoLinear

    def plain_convolution(c_in: int, c_out: int, stride: int) -> nn.Module:
        layer = convolution(c_in, c_out, 3, stride, padding=0, padding_mode="zeros")
        return _plain_convolution(layer, stride)

    def plain_linear(features: int, classes: int) -> nn.Module:
        return _with_weights(nn.Linear(features, classes), OrthoLinear(features, classes))

    return nn.Sequential(*network_of(architecture, plain_convolution, MaxMin, plain_linear)).eval()


def _plain_convolution(layer: Any, stride: int) -> nn.Module:  # noqa: ANN401
    c_out, c_in, side, _ = layer.weight.shape
    return _with_weights(nn.Conv2d(c_in, c_out, side, stride, padding=(side - 1) // 2), layer)


@torch.no_grad()
def _with_weights(plain: nn.Conv2d | nn.Linear, layer: Any) -> nn.Module:  # noqa: ANN401
    plain.weight.copy_(layer.weight)
    if plain.bias is not None:
        plain.bias.copy_(layer.bias)
    return plain


def aoc(architecture: Architecture) -> nn.Module:
    """Adaptive orthogonal convolutions (Boissin et al., 2025)."""
    from orthogonium.layers import AdaptiveOrthoConv2d

    return orthogonium(architecture, AdaptiveOrthoConv2d)


def adaptive_soc(architecture: Architecture) -> nn.Module:
    """Skew orthogonal convolutions with an explicit kernel, after three terms of the series."""
    from orthogonium.layers.conv.adaptiveSOC import (
        AdaptiveSOCConv2d,
    )

    return orthogonium(architecture, AdaptiveSOCConv2d)


def torchlip(architecture: Architecture) -> nn.Module:
    """Spectral convolutions of deel-torchlip (Serrurier et al., 2021) after `vanilla_export`."""
    from deel import torchlip as library

    def convolution(c_in: int, c_out: int, stride: int) -> nn.Module:
        layer: nn.Module = library.SpectralConv2d(c_in, c_out, 3, stride, padding=1)
        return layer

    layers = network_of(architecture, convolution, library.GroupSort2, library.SpectralLinear)
    network: nn.Module = library.Sequential(*layers).vanilla_export()
    return network.eval()


PEERS: dict[str, Callable[[Architecture], nn.Module]] = {
    "orthogonium AOC": aoc,
    "orthogonium AdaptiveSOC": adaptive_soc,
    "deel-torchlip": torchlip,
}
"""How each peer's network is made; a failure is reported with its reason."""
