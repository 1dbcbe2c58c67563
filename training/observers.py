"""Who watches a run."""

from typing import Protocol

from lipdeploy.training.metrics import EpochMetrics


class Observer(Protocol):
    """Watches a run; the command line shows its progress with it."""

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        """A step was done; loss and accuracy are those of the epoch so far."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch was done and its checkpoint written."""


class Observers:
    """Tells each of several observers, in their order.

    Args:
        observers: who is told.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        """Tell of a step."""
        for observer in self._observers:
            observer.step(epoch, step, steps, loss, accuracy)

    def epoch(self, metrics: EpochMetrics) -> None:
        """Tell of an epoch."""
        for observer in self._observers:
            observer.epoch(metrics)
