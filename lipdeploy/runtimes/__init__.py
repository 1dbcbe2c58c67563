"""Engines that run a frozen network, all behind one protocol."""

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pixels = NDArray[np.float32]
Hint = Literal["latency", "throughput"]
"""What an engine is run for: one answer soon, or many beside other work."""

FEW = 8
"""Most images at a time of an engine that is run for latency."""


def hint_for(batch: object) -> Hint:
    """What an engine that was made for batches of so many images is run for.

    Args:
        batch: number of images; anything else, which a file may hold, is taken for many.
    """
    return "latency" if isinstance(batch, int) and batch <= FEW else "throughput"


class Runtime(Protocol):
    """Something that maps pixels to features and logits.

    Attributes:
        description: engine, version and device, for people and for the record.
        arithmetic: how it computes; see `lipdeploy.arithmetic.ARITHMETICS`.
        runs_graph: whether it runs the operations of the engine's graph as they are, which is what
            the bounds of rounding are proven for; else its errors are only known as measured.
    """

    description: str
    arithmetic: str
    runs_graph: bool

    def run(self, pixels: Pixels) -> tuple[Array, Array]:
        """Map pixels (batch, 3, n, n), 0 ... 255, to features (batch, d), logits (batch, K)."""
