"""One step of training: the gradient of a batch, in parts and over processes, and its use."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lipdeploy.training.averaging import WeightAverage
from lipdeploy.training.compiling import compiled, compiling
from lipdeploy.training.distributed import Processes
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.losses import training_loss
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.run_state import RunState
from lipdeploy.training.skew import SkewKernel
from lipdeploy.training.tally import Tally

GRADIENT_LIMIT = 5.0
"""Longer gradients are cut to this length. Without it kernels can outrun their norm estimate: 36
images met gradients of 60 and then diverged, where 40 steps on CIFAR-10 had a median of 2.3."""


@contextmanager
def unchanged_buffers(network: nn.Module) -> Iterator[None]:
    """Give buffers (vectors of power iterations, scales) their values back at the end."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


class Learner:
    """A network, its loss, the optimizer and schedule that change it, and its average.

    Args:
        network: on its device.
        options: how to train.
        total_steps: of the whole run.
        processes: who share each batch.
        is_compiled: whether to compile the network's training passes.
    """

    def __init__(
        self,
        network: LipConvNet,
        options: TrainingOptions,
        total_steps: int,
        processes: Processes,
        *,
        is_compiled: bool = False,
    ) -> None:
        self.network, self.options, self.processes = network, options, processes
        self.optimizer = _optimizer(network, options)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=options.learning_rate,
            total_steps=total_steps + 1,
            cycle_momentum=False,
        )
        # Every process averages the same weights in the same way.
        self.average = WeightAverage(network, options.ema)
        self.is_compiled = is_compiled
        self._passes = partial(compiling, processes) if is_compiled else nullcontext
        self._model = processes.parallel(compiled(network) if is_compiled else network)

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def gradient(self, parts: Iterable[tuple[Tensor, Tensor]]) -> Tally:
        """Form the gradient of the mean loss of a batch; the weights stay.

        All parts but the last leave the buffers as they were. So every part sees the same kernels,
        which take one step of their power iteration for the whole batch, and the same penalty, so
        that the mean over the parts counts it once: the gradient is that of the batch in one part.

        Args:
            parts: pixels and labels of this process, `options.accumulate` times equally many.

        Returns:
            The sums over all parts of all processes.
        """
        self.optimizer.zero_grad()
        tally = Tally()
        for number, (pixels, labels) in enumerate(parts, start=1):
            with self._passes(), ExitStack() as stack:
                if number < self.options.accumulate:
                    stack.enter_context(unchanged_buffers(self.network))
                    stack.enter_context(self.processes.unshared(self._model))
                logits = self._model(pixels)
                loss = training_loss(self.network, logits, labels, self.options)
                (loss / self.options.accumulate).backward()
            tally += Tally.of(loss.detach(), logits.detach(), labels)
        return tally.over(self.processes)

    def step(self) -> None:
        """Change the weights along the gradient, and let their average follow."""
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_LIMIT)
        self.optimizer.step()
        self.average.update()
        self.scheduler.step()

    def load(self, state: RunState) -> None:
        """Go back to a state; where its learning rate was another, scale the rest of the schedule.

        Raises:
            Exception: whatever torch raises for states that are not its own.
        """
        self.network.load_state_dict(state.network)
        self.optimizer.load_state_dict(state.optimizer)
        self.scheduler.load_state_dict(state.scheduler)
        self.average.load_state_dict(state.average)
        if (factor := self.options.learning_rate / state.options.learning_rate) != 1:
            for group in self.optimizer.param_groups:
                for name in ("lr", "initial_lr", "max_lr", "min_lr"):
                    group[name] *= factor


def _optimizer(network: LipConvNet, options: TrainingOptions) -> torch.optim.Optimizer:
    kernels = [module for module in network.modules() if isinstance(module, SkewKernel)]
    decayed: list[nn.Parameter] = [p for kernel in kernels for p in kernel.parameters()]
    chosen = {id(parameter) for parameter in decayed}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": rest},
    ]
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, nesterov=True)
