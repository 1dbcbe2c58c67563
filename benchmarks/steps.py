"""A training step of both sides: ours, and the paper's (in `paper`).

Both take the same steps: forward, loss, backward, gradients cut to a length, one step of the
optimizer.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from inference.timing import fastest
from paper import PaperNetwork
from torch import Tensor, nn

from lipdeploy.training.architecture import Architecture
from lipdeploy.training.compiling import compiled, compiling
from lipdeploy.training.distributed import ALONE
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.losses import offset_cross_entropy

OURS, PAPER = "lipdeploy, bfloat16", "paper, float32"
COMPILED = "lipdeploy, bfloat16, compiled"


@dataclass(frozen=True)
class Case:
    """A network and a batch size."""

    width: int
    depth: int
    batch: int


QUICK = tuple(Case(width, 5, batch) for width in (16, 32) for batch in (128, 256))
WHOLE = (*QUICK, Case(16, 15, 128), Case(16, 15, 256))


class Side:
    """One of those that train.

    Args:
        name: `OURS`, `PAPER` or `COMPILED`.
        shape: of the network.
        mean: of the training pixels.
        steps: of the schedule.
        memory_format: of the opponent's images.
    """

    def __init__(
        self,
        name: str,
        shape: Architecture,
        mean: Tensor,
        steps: int,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.network = LipConvNet(shape, mean).train()
        self.model: nn.Module = self.network
        if name == PAPER:
            self.model = PaperNetwork(self.network, memory_format)
        else:
            self.network.body_dtype = torch.bfloat16
        self.is_compiled = name == COMPILED
        if self.is_compiled:
            self.model = compiled(self.network)
        parameters = list(self.network.parameters())
        self.optimizer = torch.optim.SGD(parameters, lr=0.2, momentum=0.9, nesterov=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=0.2, total_steps=steps + 1, cycle_momentum=False
        )

    def step(self, pixels: Tensor, labels: Tensor) -> None:
        """Forward, loss, backward, update."""
        self.optimizer.zero_grad()
        with compiling(ALONE) if self.is_compiled else nullcontext():
            loss = offset_cross_entropy(self.model(pixels), labels, 1.6, 1.0)
            loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.schedule.step()


def padding_of(name: str) -> str:
    """What each side trains with."""
    return "zero" if name == PAPER else "circular"


def step_of(
    name: str, case: Case, memory_format: torch.memory_format = torch.contiguous_format
) -> Callable[[], object]:
    """A step of one side, of a new network on random images."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (case.batch, 3, 32, 32)).float()
    labels = torch.randint(0, 10, (case.batch,))
    shape = Architecture(32, 10, width=case.width, depth=case.depth, padding=padding_of(name))
    side = Side(name, shape, torch.full((3,), 120.0), 10**6, memory_format)
    return lambda: side.step(pixels, labels)


def sides(case: Case) -> dict[str, Callable[[], object]]:
    """A step of each side, that of the paper in its faster memory format."""
    formats = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    steps = {name: step_of(PAPER, case, layout) for name, layout in formats.items()}
    return {OURS: step_of(OURS, case), PAPER: steps[fastest(steps)]}
