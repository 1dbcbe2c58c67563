"""Networks with weights like trained ones, for any shape."""

import itertools
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lipdeploy.training.architecture import Architecture
from lipdeploy.training.checkpoint import ModelCard, TrainedModel, load_model, save_model
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.skew import SkewKernel

BUNDLED = Path(__file__).parents[2] / "samples" / "model.pt"
ABOUT_WEIGHTS = (
    "weights: of the bundled model at its own shape; elsewhere random, each skew kernel scaled to "
    "the norm of A that the bundled model's kernels of its size have"
)

GRID = 8
"""Side of the grid on which the norm of a kernel is estimated."""

STEPS = 30
"""Of power iteration: within a few per cent of the norm."""


def kernel_of(taps: Tensor) -> Tensor:
    """Taps (k*k, c, c) as weights (c, c, k, k) of a convolution."""
    k = math.isqrt(len(taps))
    return taps.permute(1, 2, 0).reshape(*taps.shape[1:], k, k).contiguous()


def skew_norm(taps: Tensor) -> float:
    """Estimate of the norm of the circular skew convolution with taps (k*k, c, c)."""
    kernel, reach = kernel_of(taps), math.isqrt(len(taps)) // 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, len(kernel), GRID, GRID, generator=generator)
    for _ in range(STEPS):
        padded = functional.pad(x / x.norm(), (reach,) * 4, mode="circular")
        x = functional.conv2d(padded, kernel)
    return float(x.norm())


def skew_kernels(network: LipConvNet) -> list[SkewKernel]:
    """The kernels of a network, first layer to last."""
    return [module for module in network.modules() if isinstance(module, SkewKernel)]


@cache
def bundled_model() -> TrainedModel:
    """The model of the samples."""
    return load_model(BUNDLED)


@cache
def trained_norms() -> dict[int, float]:
    """Mean norm of A over the bundled model's layers, for each size of kernel."""
    norms: dict[int, list[float]] = {}
    for kernel in skew_kernels(bundled_model().network):
        norms.setdefault(kernel.kernel_size, []).append(skew_norm(kernel()))
    return {size: sum(found) / len(found) for size, found in norms.items()}


def like_trained(architecture: Architecture) -> LipConvNet:
    """A random network in evaluation mode, its skew kernels as large as trained ones."""
    torch.manual_seed(0)
    network = LipConvNet(architecture, bundled_model().network.mean).eval()
    for kernel in skew_kernels(network):
        kernel.scale *= trained_norms()[kernel.kernel_size] / skew_norm(kernel())
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    return network


@torch.no_grad()
def write_model(architecture: Architecture, path: Path) -> None:
    """Write a model file of this shape: the bundled model, or one like it."""
    bundled = bundled_model()
    if architecture == bundled.network.architecture:
        save_model(bundled, path)
        return
    names = tuple(f"class {index}" for index in range(architecture.classes))
    card = ModelCard(names, "none", "benchmark", 0)
    n = architecture.image_size
    examples = functional.interpolate(bundled.examples, (n, n), mode="bilinear")
    save_model(TrainedModel(like_trained(architecture), card, examples), path)


def pixels_of(path: Path, batch: int) -> NDArray[np.float32]:
    """Real images, repeated, with noise of one step of 255; shape (batch, 3, n, n)."""
    examples = load_model(path).examples
    repeats = -(-batch // len(examples))
    images = examples.repeat(repeats, 1, 1, 1)[:batch]
    noise = torch.randint(-1, 2, images.shape, generator=torch.Generator().manual_seed(1))
    pixels: NDArray[np.float32] = (images.round() + noise).clamp(0, 255).contiguous().numpy()
    return pixels


def multiplications(architecture: Architecture) -> float:
    """Of one image in the spectral form: a fixed measure of work, whoever does it how.

    2 n^2 c_in c_out for a layer on an n x n grid (four real products for each pair of mirror
    frequencies; c_in c_out where n = 1) and 2 n^3 (c_in + c_out) for separable transforms; 43
    million for LipConvNet-5 with 32 channels at 32 pixels.
    """
    grids, width = architecture.grids(), architecture.width
    layers = [(grids[0], 3, width)]
    for index, (grid, half) in enumerate(itertools.pairwise(grids)):
        channels = width * 2**index
        layers += [(grid, channels, channels)] * (architecture.depth // 5 - 1)
        layers += [(half, 4 * channels, 4 * channels)]
    return float(sum(_layer(*layer) for layer in layers))


def _layer(n: int, c_in: int, c_out: int) -> int:
    if n == 1:
        return c_in * c_out
    return 2 * n**2 * c_in * c_out + 2 * n**3 * (c_in + c_out)
