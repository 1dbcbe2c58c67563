"""Running the nodes of an engine's graph with torch, exactly as they are.

For machines without ONNX Runtime, and as a reference that shares nothing with it but the bytes.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lipdeploy.choices import Device
from lipdeploy.errors import EngineError
from lipdeploy.runtimes import Array, Pixels


class TorchRuntime:
    """A graph on one device, never on another one than asked for.

    Args:
        data: bytes of an engine's graph, `lipdeploy.artifact.Engine.prepared`.
        device: "cpu", "cuda", or "auto": CUDA where it can run, else the CPU.
        dtype: "float32" for the types of the graph itself, "float64" for all numbers in that.
        arithmetic: of the graph's body, see `lipdeploy.arithmetic.ARITHMETICS`.

    Attributes:
        description: torch's version, type of numbers and device.
        arithmetic: as given, or "float64".
        runs_graph: it runs the nodes of the graph as they are.

    Raises:
        EngineError: if torch is missing, or cannot run the graph on the device.
    """

    runs_graph = True

    def __init__(
        self,
        data: bytes,
        device: Device = "auto",
        dtype: Literal["float32", "float64"] = "float32",
        arithmetic: str = "float32",
    ) -> None:
        try:
            import torch

            from lipdeploy.runtimes.torch_graph import TorchGraph, choose_device
        except ImportError as error:
            raise EngineError(
                "torch is not installed; pip install 'lipdeploy[train]', or use "
                "--runtime onnxruntime"
            ) from error
        used, shown = choose_device(device)
        self._device: Device = "cuda" if used == "cuda" else "cpu"
        self._dtype = dtype
        self._graph = TorchGraph(data, used, dtype)
        self.arithmetic = dtype if dtype == "float64" else arithmetic
        self.description = f"torch {torch.__version__}, {self.arithmetic}, {shown}"

    def run(self, pixels: Pixels) -> tuple[Array, Array]:
        """Map pixels (batch, 3, n, n), 0 ... 255, to features and logits."""
        features, logits = self.outputs(["features", "logits"], {"pixels": pixels})
        return features.astype(np.float64), logits.astype(np.float64)

    def outputs(self, names: list[str], inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The values of some outputs of the graph, in its arithmetic; only what they need is run.

        Raises:
            EngineError: if there are no such outputs or inputs, or memory is short.
        """
        return self._graph.outputs(names, inputs)

    def same_device(self, data: bytes) -> "TorchRuntime":
        """Another graph on the same device, in the same arithmetic."""
        return TorchRuntime(data, self._device, self._dtype, self.arithmetic)
