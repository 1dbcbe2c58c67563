"""How a network is trained."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from lipdeploy.choices import check_choice
from lipdeploy.errors import UsageError

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Loss = Literal["offset", "annealed"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
Keep = Literal["last", "best"]
KEEPS: tuple[Keep, ...] = get_args(Keep)

LARGEST = 64
"""Of what is seldom above 1, or is a number of pixels."""
FLAGS = {
    "batch_size": "--batch",
    "learning_rate": "--lr",
    "offset": "--u",
    "temperature": "--t",
    "certificate": "--cr",
}
"""Options of the command line that are not called like their field."""

WHOLE = ("epochs", "batch_size", "accumulate", "shift", "seed", "certify_every")
REAL = (
    "learning_rate",
    "weight_decay",
    "offset",
    "temperature",
    "beta",
    "certificate",
    "curvature",
    "validation",
    "ema",
)


def flag(name: str) -> str:
    """The option of the command line that sets a field."""
    return FLAGS.get(name, f"--{name.replace('_', '-')}")


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the defaults are the balanced recipe.

    Attributes:
        epochs: passes over the training part.
        batch_size: images a step, of all processes; None for 256, or less where an epoch would have
            under 8 steps.
        accumulate: parts that a process computes its share of a batch in.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: on skew kernels only.
        loss: "offset" (cross-entropy with offset and temperature) or "annealed" (logit annealing).
        offset: u of the loss (xi of logit annealing), an l2 distance in pixels of [0, 1].
        temperature: T of the loss, likewise.
        beta: exponent of logit annealing.
        certificate: gamma, the weight of certificate regularisation; margin and loss have the same
            unit, so it is a number.
        curvature: weight of the curvature penalty of an MLP head.
        validation: share of the training part that is set aside.
        ema: decay a step of averaged weights, which model.pt then holds; 0 for none.
        keep: what model.pt holds: the last epoch, or the best by the validation images.
        certify_every: certify validation images every so many epochs; 0 for the last one only.
        shift: largest random shift, in pixels.
        seed: of initial weights, split, order and augmentation.
        precision: arithmetic of the body; weights, head and loss are float32.
        device: "cpu", "cuda", ...
        recipe: what the options were taken from; empty where that was the command line alone.
    """

    epochs: int = 20
    batch_size: int | None = None
    accumulate: int = 1
    learning_rate: float = 0.2
    weight_decay: float = 1e-4
    loss: Loss = "offset"
    offset: float = 0.4
    temperature: float = 0.25
    beta: float = 5.0
    certificate: float = 0.0
    curvature: float = 0.0
    validation: float = 0.05
    ema: float = 0.0
    keep: Keep = "last"
    certify_every: int = 0
    shift: int = 4
    seed: int = 0
    precision: Precision = "float32"
    device: str = "cpu"
    recipe: str = ""

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("epochs", "batch_size", "accumulate", "learning_rate", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{flag(name)} {value}: must be positive")
        for name in ("weight_decay", "offset", "certificate", "curvature", "shift"):
            self._check_range(name, 0, LARGEST)
        # Between 0 and 1 the loss has no gradient where an image is sure, and 0 is --loss offset.
        self._check_range("beta", 1, LARGEST)
        for name in ("validation", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{flag(name)} {getattr(self, name)}: must be a share in [0, 1)")
        if self.certify_every < 0:
            raise UsageError(f"--certify-every {self.certify_every}: must be 0 (the end) or more")
        check_choice("--precision", self.precision, PRECISIONS)
        check_choice("--loss", self.loss, LOSSES)
        check_choice("--keep", self.keep, KEEPS)

    def batch_for(self, images: int) -> int:
        """Images a step, for so many to train on; no more than there are."""
        return min(self.batch_size or min(256, max(1, images // 8)), images)

    def _check_types(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name not in WHOLE + REAL:
                if not isinstance(value, str):
                    raise UsageError(f"{flag(name)} {value!r:.50}: must be text")
                continue
            kinds = int if name in WHOLE else (int, float)
            is_default = name == "batch_size" and value is None
            if isinstance(value, bool) or not (is_default or isinstance(value, kinds)):
                raise UsageError(f"{flag(name)} {value!r:.50}: must be a number")

    def _check_range(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        if not least <= value <= most:
            raise UsageError(f"{flag(name)} {value}: must be in [{least}, {most}]")
