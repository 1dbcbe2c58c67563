"""What a predictor answers."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Certificate:
    """A guaranteed radius and what it rests on.

    Attributes:
        radius: l2 in the space of the network's input, pixels in [0, 1]; 0 where nothing is
            certified.
        radius_255: the same in units of 1/255.
        radius_file: l2 in the pixels of the decoded file, in [0, 1]; None where the file's pixels
            are not linear in the network's input (alpha, CMYK).
        integer_budget: largest sum of squared differences of 8-bit pixels of the file that is
            covered; -1 for none, None where there is no file radius.
        guarantee: the statement, see `lipdeploy.certificate`.
        assumptions: what the proof assumes.
        reason: why the radius is 0, else None.
        radii_255: radius_255 of each statement that was computed, by name; others than the one
            that was asked for only where the predictor compares.
    """

    radius: float
    radius_255: float
    radius_file: float | None
    integer_budget: int | None
    guarantee: str
    assumptions: tuple[str, ...]
    reason: str | None
    radii_255: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        path: where the image came from, or its position in the call.
        label: class name.
        class_index: position of the class.
        logits: as the engine returned them.
        certificate: None where none was asked for.
    """

    path: str
    label: str
    class_index: int
    logits: tuple[float, ...]
    certificate: Certificate | None

    @property
    def radius(self) -> float:
        """The certified radius, l2 in [0, 1] pixels of the network's input; 0 without one."""
        return self.certificate.radius if self.certificate else 0.0


@dataclass(frozen=True)
class Failure:
    """An image that could not be read.

    Attributes:
        path: where it came from.
        error: why.
    """

    path: str
    error: str
