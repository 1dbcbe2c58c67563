"""The network of an engine as a function that torch can differentiate."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from lipdeploy.artifact import Manifest
from lipdeploy.choices import Device
from lipdeploy.exporters.onnx import build_model
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.runtimes.torch_graph import TorchGraph, choose_device

Model = Callable[[Tensor], Tensor]
"""From images (batch, 3, n, n) in [0, 1] to logits (batch, classes), both float32."""


def differentiable(network: FrozenNetwork, manifest: Manifest, device: Device) -> tuple[Model, str]:
    """Logits of a frozen network, and the device that they are computed on.

    The nodes are those of the engine, but sums are not cut into blocks, which is faster and changes
    nothing but rounding; bodies in less than float32 are computed in float64, since gradients would
    be lost in a shorter type. What an attack finds here is a guess until the engine confirms it.

    Raises:
        EngineError: if the device cannot be used.
    """
    used, _ = choose_device(device)
    whole = replace(manifest, longest_sum=None)
    graph = build_model(network, whole, prepared=True, with_radius=False)
    data = graph.SerializeToString()
    is_short = manifest.arithmetic not in ("float32", "tf32")
    logits = TorchGraph(data, used, "float64" if is_short else "float32").function("logits")

    def model(images: Tensor) -> Tensor:
        exact = images.double() if is_short else images
        return logits(255 * exact).float()

    return model, used
