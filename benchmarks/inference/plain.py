"""Plain CNNs of the same shape, without any guarantee: the lower limit of the time needed.

One has the layers of a LipConvNet, each orthogonal convolution replaced by an ordinary one of the
same kernel size and channels; the other halves grids by strided convolutions, as ordinary networks
do, which need an eighth of the multiplications there.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from inference.opponents import (
    Logits,
    Opponent,
    PairSort,
    Pixels,
    Run,
    Unshuffle,
    torch_opponents,
)
from lipdeploy.training.activations import ChannelMax, SpaceToDepth
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.lipconvnet import INPUT_GAIN, LipConvNet
from lipdeploy.training.soc import SkewOrthogonalConvolution

PLAIN, STRIDED = "plain CNN, same layers", "plain CNN, strided"
OPTIMISED = "ONNX Runtime, optimised"
SMOOTHING_SAMPLES = 100_000
"""Forward passes of randomised smoothing for one certificate (Cohen et al., 2019)."""


class Scale(nn.Module):
    """Pixels of 0 ... 255 to numbers around 0."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (batch, 3, n, n) to the same shape."""
        scaled: Tensor = (pixels - 128) * (INPUT_GAIN / 255)
        return scaled


def shapes(architecture: Architecture) -> Iterator[tuple[int, int, int]]:
    """Input channels, output channels and stride of each convolution, as in a LipConvNet."""
    channels = architecture.width
    yield 3, channels, 1
    for _ in architecture.grids()[1:]:
        yield from repeat((channels, channels, 1), architecture.depth // 5 - 1)
        yield channels, 2 * channels, 2
        channels *= 2


def network_of(
    architecture: Architecture,
    convolution: Callable[[int, int, int], nn.Module],
    activation: Callable[[], nn.Module],
    linear: Callable[[int, int], nn.Module],
) -> list[nn.Module]:
    """The layers of a network of a LipConvNet's channels and grids, of other kinds of layers."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [Scale()]
    for shape in shapes(architecture):
        layers += [convolution(*shape), activation()]
    return [*layers, nn.Flatten(), *head_of(architecture, linear)]


def head_of(
    architecture: Architecture, linear: Callable[[int, int], nn.Module]
) -> Iterator[nn.Module]:
    """A head of the same shape: one layer, before it a hidden one where a LipConvNet has that."""
    features = architecture.features
    if architecture.head == "mlp":
        yield linear(features, features)
        yield nn.Softplus()
    yield linear(features, architecture.classes)


def plain_cnn(architecture: Architecture) -> nn.Module:
    """A LipConvNet with ordinary convolutions, zero padding and random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [Scale()]
    for module in LipConvNet(architecture, torch.zeros(3)).body:
        if isinstance(module, SkewOrthogonalConvolution):
            k = module.kernel.kernel_size
            c_in, c_out = module.in_channels, module.out_channels
            layers.append(nn.Conv2d(c_in, c_out, k, padding=k // 2))
        elif isinstance(module, SpaceToDepth):
            layers.append(Unshuffle())
        else:
            layers.append(PairSort(only_max=isinstance(module, ChannelMax)))
    return nn.Sequential(*layers, nn.Flatten(), *head_of(architecture, nn.Linear)).eval()


def strided_cnn(architecture: Architecture) -> nn.Module:
    """3 x 3 convolutions with ReLU, random weights."""

    def convolution(c_in: int, c_out: int, stride: int) -> nn.Module:
        return nn.Conv2d(c_in, c_out, 3, stride, padding=1)

    return nn.Sequential(*network_of(architecture, convolution, nn.ReLU, nn.Linear)).eval()


def exported(module: nn.Module, pixels: Pixels) -> bytes:
    """A network through torch.onnx.export, for any number of images."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        # The exporter that needs no other package; it says that it is the older one.
        warnings.simplefilter("ignore")
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            module,
            (torch.from_numpy(pixels),),
            path,
            dynamo=False,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
        )
        return path.read_bytes()


def optimised_run(model: bytes) -> Run:
    """An ONNX model in ONNX Runtime on the CPU, with all its optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(pixels: Pixels) -> Logits:
        logits: Logits = session.run(["logits"], {"pixels": pixels})[0]
        return logits

    return run


def optimised_opponent(model: bytes) -> Opponent:
    """The same, with what the benchmark wants to know."""
    return Opponent(
        OPTIMISED, optimised_run(model), len(model), partial(Path.write_bytes, data=model)
    )


def exported_opponents(module: nn.Module, pixels: Pixels) -> list[Opponent]:
    """A network in PyTorch in each memory format, and exported to ONNX Runtime."""
    return [optimised_opponent(exported(module, pixels[:2])), *torch_opponents(module)]
