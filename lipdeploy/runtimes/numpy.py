"""The reference: float64 on the CPU, with nothing but numpy."""

import numpy as np

from lipdeploy.frozen import FrozenNetwork
from lipdeploy.runtimes import Array, Pixels


class NumpyRuntime:
    """Runs a frozen network in float64."""

    arithmetic = "float64"
    runs_graph = True

    def __init__(self, network: FrozenNetwork) -> None:
        self.network = network
        self.description = f"numpy {np.__version__}, float64, cpu"

    def run(self, pixels: Pixels) -> tuple[Array, Array]:
        """Map pixels (batch, 3, n, n), 0 ... 255, to features and logits."""
        features = self.network.features(pixels.astype(np.float64))
        return features, self.network.head.logits(features)
