"""How a network is trained."""

import math
from dataclasses import dataclass
from typing import Literal

from lipdeploy.choices import check_choice
from lipdeploy.errors import UsageError

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

LARGEST = 64
"""Of what is seldom above 1, or is a number of pixels."""
FLAGS = {"batch_size": "--batch", "learning_rate": "--lr", "offset": "--u", "temperature": "--t"}
"""Options of the command line that are not called like their field."""

WHOLE = ("epochs", "batch_size", "accumulate", "shift", "seed")
REAL = (
    "learning_rate",
    "weight_decay",
    "offset",
    "temperature",
    "curvature",
    "validation",
)


def _flag(name: str) -> str:
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
        offset: u of the loss, an l2 distance in pixels of [0, 1].
        temperature: T of the loss, likewise.
        curvature: weight of the curvature penalty of an MLP head.
        validation: share of the training part that is set aside.
        shift: largest random shift, in pixels.
        seed: of initial weights, split, order and augmentation.
        precision: arithmetic of the body; weights, head and loss are float32.
        device: "cpu", "cuda", ...
    """

    epochs: int = 20
    batch_size: int | None = None
    accumulate: int = 1
    learning_rate: float = 0.2
    weight_decay: float = 1e-4
    offset: float = 0.4
    temperature: float = 0.25
    curvature: float = 0.0
    validation: float = 0.05
    shift: int = 4
    seed: int = 0
    precision: Precision = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in WHOLE + REAL:
            value = getattr(self, name)
            kinds = int if name in WHOLE else (int, float)
            is_default = name == "batch_size" and value is None
            if isinstance(value, bool) or not (is_default or isinstance(value, kinds)):
                raise UsageError(f"{_flag(name)} {value!r:.50}: must be a number")
        for name in ("epochs", "batch_size", "accumulate", "learning_rate", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{_flag(name)} {value}: must be positive")
        for name in ("weight_decay", "offset", "curvature", "shift"):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise UsageError(f"{_flag(name)} {getattr(self, name)}: must be in [0, {LARGEST}]")
        if not 0 <= self.validation < 1:
            raise UsageError(f"--validation {self.validation}: must be a share in [0, 1)")
        check_choice("--precision", self.precision, PRECISIONS)
