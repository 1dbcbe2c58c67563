"""Loss and right answers, added up over images, parts and processes."""

import math
from dataclasses import dataclass

from torch import Tensor

from lipdeploy.training.distributed import Processes
from lipdeploy.training.losses import correct


@dataclass(frozen=True)
class Tally:
    """Sums over images.

    Attributes:
        loss: of the mean loss of each part times its images.
        hits: right answers.
        count: images.
    """

    loss: float = 0.0
    hits: float = 0.0
    count: float = 0.0

    @classmethod
    def of(cls, loss: Tensor, logits: Tensor, labels: Tensor) -> "Tally":
        """What one part adds."""
        return cls(loss.item() * len(labels), correct(logits, labels), len(labels))

    def __add__(self, other: "Tally") -> "Tally":
        """The sums of both."""
        return Tally(self.loss + other.loss, self.hits + other.hits, self.count + other.count)

    def over(self, processes: Processes) -> "Tally":
        """The sums of all processes."""
        return Tally(*processes.totals([self.loss, self.hits, self.count]))

    @property
    def mean_loss(self) -> float:
        """Mean loss; NaN of no images."""
        return self.loss / self.count if self.count else math.nan

    @property
    def accuracy(self) -> float:
        """Share of right answers; NaN of no images."""
        return self.hits / self.count if self.count else math.nan
