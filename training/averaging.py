"""Averaged weights: the network that model.pt holds moves slower than the one that is trained."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lipdeploy.training.lipconvnet import LipConvNet

WARM_UP = 10
"""Steps over which the average begins to reach back: the first weights should soon be forgotten."""


class WeightAverage:
    """Exponential moving average of a network's weights and buffers (Polyak & Juditsky, 1992).

    After step t the average moves to the weights by 1 - min(decay, (1 + t) / (10 + t)). Buffers are
    averaged, too: a kernel is applied as weights times scale, and the scale belongs to the
    weights of the same steps. Raw parameters are averaged, and every layer is made of them again
    (of soc: sums of skew kernels are skew), so that an averaged network is as 1-Lipschitz, and is
    frozen and certified, as any other.

    Args:
        network: what is trained.
        decay: of the average a step, in [0, 1); 0 for no average.
    """

    def __init__(self, network: LipConvNet, decay: float) -> None:
        self._trained, self._decay = network, decay
        self._model = None
        if decay:
            self._model = AveragedModel(network, multi_avg_fn=self._move, use_buffers=True)

    @torch.no_grad()
    def _move(self, averages: Any, values: Any, count: Tensor | int) -> None:  # noqa: ANN401
        """One step on tensors of one type; torch leaves the types of the lists open."""
        steps = int(count)
        decay = min(self._decay, (1 + steps) / (WARM_UP + steps))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:
            torch._foreach_copy_(averages, values)

    @property
    def network(self) -> LipConvNet:
        """The averaged network; the trained one where there is no average."""
        averaged = self._trained if self._model is None else self._model.module
        if not isinstance(averaged, LipConvNet):
            raise TypeError(f"the average of a {type(averaged).__name__}")
        return averaged

    def update(self) -> None:
        """Follow the weights after a step."""
        if self._model is not None:
            self._model.update_parameters(self._trained)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; nothing where there is no average."""
        return {} if self._model is None else self._model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`; raises torch's errors for a state that does not fit."""
        if self._model is not None:
            self._model.load_state_dict(state)
