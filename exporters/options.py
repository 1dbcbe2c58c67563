"""What `lipdeploy export` can be asked for, and what it refuses before any work."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lipdeploy.arithmetic import ARITHMETICS, FLOAT32, PRECISIONS
from lipdeploy.choices import check_choice
from lipdeploy.errors import UsageError
from lipdeploy.exporters.plan import FORM_CHOICES, FormChoice, Target
from lipdeploy.rounding import (
    ACCUMULATIONS,
    LARGEST_LIMIT,
    SHORTEST_LIMIT,
    Accumulation,
    Rounding,
)

WeightsType = Literal["float16", "float32"]
WEIGHTS_TYPES: tuple[WeightsType, ...] = ("float16", "float32")
ENGINES = ("onnx", "openvino", "trt")
ALIASES = {"tensorrt": "trt", "engine": "trt"}
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "trt": ".engine"}

DECIDED = (
    "form",
    "precision",
    "weights",
    "accumulation",
    "longest_sum",
    "max_rounding_loss",
    "tune",
)
"""What of the options an engine cannot be asked for any more."""


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        engine: "onnx", "openvino" or "trt".
        form: form of the linear layers, or "auto".
        precision: the arithmetic of the linear layers, see `lipdeploy.arithmetic.ARITHMETICS`; the
            head computes in float32, or in tf32 with them.
        weights: how operators are stored; biases, transforms and head are float32.
        accumulation: what may be assumed of the order of sums; see `lipdeploy.rounding`.
        longest_sum: most terms of a sum of the graph; None for `max_rounding_loss` to decide, or
            else for `lipdeploy.rounding.LONGEST_SUMS`.
        batch: images at a time that the engine is made fast for; it takes any number.
        max_batch: most images of one call of a TensorRT engine; more are cut into several.
        portable: whether a TensorRT engine may run on other GPUs and versions, if slower.
        tune: measure the candidates of each layer on this machine instead of estimating them.
        triton: folder of a model repository for Triton Inference Server that is written, too.
        max_rounding_loss: largest radius that rounding may cost, l2 in pixels of [0, 1]; None for
            whatever the fastest forms cost.

    Raises:
        UsageError: if an option is none of its values.
    """

    engine: str = "onnx"
    form: FormChoice = "auto"
    precision: str = "float32"
    weights: WeightsType = "float16"
    accumulation: Accumulation = "blocked"
    longest_sum: int | None = None
    batch: int = 64
    max_batch: int = 256
    portable: bool = False
    tune: bool = False
    max_rounding_loss: float | None = None
    triton: Path | None = None

    def __post_init__(self) -> None:
        check_choice("--engine", self.engine, (*ENGINES, *ALIASES))
        check_choice("--form", self.form, FORM_CHOICES)
        check_choice("--precision", self.precision, PRECISIONS)
        check_choice("--weights", self.weights, WEIGHTS_TYPES)
        check_choice("--accumulation", self.accumulation, ACCUMULATIONS)
        if self.has_lower_precision:
            self._check_lower_precision()
        if self.triton is not None and self.kind == "openvino":
            raise UsageError(
                "--triton: Triton cannot hold OpenVINO to float32; use --engine onnx or trt"
            )
        self._check_numbers()

    def _check_lower_precision(self) -> None:
        if self.accumulation == "same-order":
            raise UsageError(
                "--accumulation same-order: nothing is known of the order of sums on tensor cores; "
                "leave it out with --precision"
            )
        if self.triton is not None:
            raise UsageError(f"--triton: no radius is proven for a server in {self.precision}")
        if self.kind == "openvino":
            raise UsageError("--engine openvino is held to float32; leave out --precision")

    def _check_numbers(self) -> None:
        limits = SHORTEST_LIMIT, LARGEST_LIMIT
        if self.longest_sum is not None and not limits[0] <= self.longest_sum <= limits[1]:
            raise UsageError(
                f"--longest-sum {self.longest_sum}: must be {limits[0]} to {limits[1]}"
            )
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch}: must be at least 1")
        if self.kind == "trt" and self.max_batch < self.batch:
            raise UsageError(f"--max-batch {self.max_batch}: must be at least --batch {self.batch}")

    @property
    def has_lower_precision(self) -> bool:
        """Whether something else than float32 was asked for."""
        return self.precision != FLOAT32.name

    @property
    def kind(self) -> str:
        """The engine, under its first name."""
        return ALIASES.get(self.engine, self.engine)

    @property
    def target(self) -> Target:
        """What the plan is made for."""
        rounding = Rounding.of_graph(ARITHMETICS[self.precision], self.accumulation)
        longest = self.longest_sum or rounding.block
        packs = self.kind != "trt" and not self.has_lower_precision
        return Target(self.batch, replace(rounding, block=longest), packs)


def is_engine(path: Path) -> bool:
    """Whether a file is an engine, by its name, from which another one can be built."""
    return path.suffix in (*SUFFIXES.values(), ".plan")


def check_files(model_path: Path, output: Path, options: ExportOptions) -> None:
    """Raise UsageError for files that do not go with each other or with the options."""
    if output.resolve() == model_path.resolve():
        raise UsageError(f"--output {output}: is the model itself; give another name")
    expected = SUFFIXES[options.kind]
    if output.suffix != expected and (options.kind != "onnx" or is_engine(output)):
        raise UsageError(f"--output {output}: an engine for {options.kind} is named *{expected}")
    if is_engine(model_path):
        _check_rebuild(model_path, options)


def _check_rebuild(path: Path, options: ExportOptions) -> None:
    """Raise UsageError for what an engine has already decided."""
    if options.kind == "onnx":
        raise UsageError(f"{path}: an engine already; give a model.pt, or --engine openvino or trt")
    # TensorRT still chooses its kernels by the batch, OpenVINO runs what the plan chose by it.
    for name in (*DECIDED, "batch") if options.kind == "openvino" else DECIDED:
        if getattr(options, name) != getattr(ExportOptions(), name):
            option = name.replace("_", "-")
            raise UsageError(
                f"--{option}: {path.name} is an engine, of which that cannot be changed any more; "
                "export the model.pt again"
            )
