"""Which epoch's weights model.pt holds."""

import copy
import math
from typing import Any

from lipdeploy.errors import UsageError
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.metrics import EpochMetrics
from lipdeploy.training.options import TrainingOptions


class ModelChoice:
    """The last epoch, or the best one by the validation images; the test set has no part in it.

    With --certify-every the best has the largest certified accuracy at 36/255 among the epochs that
    were certified, else the largest accuracy among all; of equals the later one.

    Args:
        options: what was asked for.
        validation: number of validation images.

    Raises:
        UsageError: if there are no images to choose by.
    """

    def __init__(self, options: TrainingOptions, validation: int) -> None:
        self._is_best, self._by_radius = options.keep == "best", options.certify_every > 0
        if (self._is_best or self._by_radius) and not validation:
            option = "--keep best" if self._is_best else f"--certify-every {options.certify_every}"
            raise UsageError(f"{option} needs validation images; set some aside with --validation")
        self._best: dict[str, Any] = {}

    @property
    def epoch(self) -> int | None:
        """The best epoch so far; None where the last one is kept."""
        return self._best.get("epoch")

    @property
    def has_found_none(self) -> bool:
        """Whether the best epoch is wanted, and none so far has a score; then the last is kept."""
        return self._is_best and not self._best

    def offer(self, metrics: EpochMetrics, network: LipConvNet) -> None:
        """Remember the weights of an epoch where they are the best so far."""
        score = metrics.certified_36 if self._by_radius else metrics.validation_accuracy
        if not self._is_best or math.isnan(score) or score < self._best.get("score", -1.0):
            return
        weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
        self._best = {"epoch": metrics.epoch, "score": score, "network": weights}

    def chosen(self, epoch: int, network: LipConvNet) -> tuple[int, LipConvNet]:
        """The epoch and the network for model.pt.

        Args:
            epoch: the last one.
            network: its weights.
        """
        if not self._best:
            return epoch, network
        best = copy.deepcopy(network)
        best.load_state_dict(self._best["network"])
        return self._best["epoch"], best

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self._best

    def load_state_dict(self, state: dict[str, Any], network: LipConvNet) -> None:
        """Undo `state_dict`.

        Args:
            state: what a checkpoint held.
            network: one that its weights must fit.

        Raises:
            ValueError: if a value is of another kind; torch's errors for weights that do not fit.
        """
        if state:
            epoch, score = state["epoch"], state["score"]
            if type(epoch) is not int or epoch < 1 or not isinstance(score, float):
                raise ValueError(f"a best epoch {epoch!r:.50} of {score!r:.50}")
            copy.deepcopy(network).load_state_dict(state["network"])
        self._best = state
