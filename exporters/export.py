"""From model.pt to a checked engine file."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from lipdeploy.artifact import Engine, Manifest, make_manifest
from lipdeploy.choices import check_choice
from lipdeploy.engine_error import distances_upper
from lipdeploy.errors import UsageError
from lipdeploy.exporters.freeze import freeze, layer_shapes
from lipdeploy.exporters.onnx_cost import CostModel
from lipdeploy.exporters.onnx_file import onnx_bytes, parse_onnx
from lipdeploy.exporters.parity import Parity, compare, probe_inputs
from lipdeploy.exporters.plan import FORM_CHOICES, FormChoice, Target, make_plan
from lipdeploy.exporters.planned import (
    PlannedLayer,
    longest_sums,
    planned_layers,
    within_loss,
)
from lipdeploy.exporters.tune import Tuner
from lipdeploy.files import check_output, write_atomically
from lipdeploy.images import PREPROCESSING
from lipdeploy.rounding import (
    ACCUMULATIONS,
    FLOAT32,
    LARGEST_LIMIT,
    SHORTEST_LIMIT,
    Accumulation,
    Rounding,
)
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.training.checkpoint import TrainedModel, load_model
from lipdeploy.training.lipconvnet import INPUT_GAIN

WeightsType = Literal["float16", "float32"]
WEIGHTS_TYPES: tuple[WeightsType, ...] = ("float16", "float32")
ENGINES = ("onnx",)
PLANNED = ("trt", "tensorrt", "engine", "openvino")
Stage = Callable[[str], None]


def ignore_stage(name: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        engine: "onnx".
        form: form of the linear layers, or "auto".
        weights: how operators are stored; biases, transforms and head are float32.
        accumulation: what may be assumed of the order of sums; see `lipdeploy.rounding`.
        longest_sum: most terms of a sum of the graph; None for `max_rounding_loss` to decide, or
            else for `lipdeploy.rounding.LONGEST_SUMS`.
        batch: images at a time that the engine is made fast for; it takes any number.
        tune: measure the candidates of each layer on this machine instead of estimating them.
        max_rounding_loss: largest radius that rounding may cost, l2 in pixels of [0, 1]; None for
            whatever the fastest forms cost.

    Raises:
        UsageError: if an option is none of its values.
    """

    engine: str = "onnx"
    form: FormChoice = "auto"
    weights: WeightsType = "float16"
    accumulation: Accumulation = "blocked"
    longest_sum: int | None = None
    batch: int = 64
    tune: bool = False
    max_rounding_loss: float | None = None

    def __post_init__(self) -> None:
        if self.engine in PLANNED:
            raise UsageError(f"--engine {self.engine} is not built yet; use --engine onnx")
        check_choice("--engine", self.engine, ENGINES)
        check_choice("--form", self.form, FORM_CHOICES)
        check_choice("--weights", self.weights, WEIGHTS_TYPES)
        check_choice("--accumulation", self.accumulation, ACCUMULATIONS)
        limits = SHORTEST_LIMIT, LARGEST_LIMIT
        if self.longest_sum is not None and not limits[0] <= self.longest_sum <= limits[1]:
            raise UsageError(
                f"--longest-sum {self.longest_sum}: must be {limits[0]} to {limits[1]}"
            )
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch}: must be at least 1")

    @property
    def target(self) -> Target:
        """What the plan is made for."""
        rounding = Rounding.of_graph(FLOAT32, self.accumulation)
        longest = self.longest_sum or rounding.block
        return Target(self.batch, replace(rounding, block=longest))


@dataclass(frozen=True)
class Exported:
    """A written engine.

    Attributes:
        path: the file.
        manifest: what it says of itself.
        parity: how it compares with float64.
        program_cost: what the statement *program* takes of a radius for rounding of the features,
            in units of 1/255, at most, on the inputs of the comparison.
        plan: how each layer is evaluated, and what that costs.
        seconds: time of each stage; "exponentials" is that of all layers, almost only exponentials,
            "freeze" the rest of freezing.
    """

    path: Path
    manifest: Manifest
    parity: Parity
    program_cost: float
    plan: tuple[PlannedLayer, ...]
    seconds: dict[str, float]


def export_model(
    model_path: Path, output: Path, options: ExportOptions, stage: Stage = ignore_stage
) -> Exported:
    """Freeze, prove, check against the float64 reference, write; a failed check writes nothing.

    Raises:
        LipdeployError: if the model cannot be read, frozen, proven, written, or fails the check.
    """
    if output.resolve() == model_path.resolve():
        raise UsageError(f"--output {output}: is the model itself; give another name")
    check_output(output)
    clock = _Stopwatch(stage)
    model = load_model(model_path)
    engine, plan = _build(model, model_path, options, clock)
    clock.start("check")
    examples = probe_inputs(model.examples.numpy(), engine.network.image_size)
    parity = compare(engine.network, OnnxRuntime(engine.prepared, "cpu"), examples)
    clock.start("write")
    write_atomically(engine.data, output)
    clock.stop()
    distances = distances_upper(examples.astype(np.float64), engine.network.centre)
    errors = engine.manifest.engine_errors.features(distances)
    cost = 2 * float(errors.max()) / engine.manifest.lipschitz_upper
    return Exported(output, engine.manifest, parity, cost, plan, clock.seconds)


def build_engine(model_path: Path, options: ExportOptions, stage: Stage = ignore_stage) -> Engine:
    """The engine that `export_model` would write, in memory.

    Raises:
        LipdeployError: as `export_model`.
    """
    return _build(load_model(model_path), model_path, options, _Stopwatch(stage))[0]


def _build(
    model: TrainedModel, path: Path, options: ExportOptions, clock: "_Stopwatch"
) -> tuple[Engine, tuple[PlannedLayer, ...]]:
    clock.start("tune" if options.tune else "plan")
    shapes, target = layer_shapes(model.network), options.target
    cost = Tuner(announce=clock.announce) if options.tune else CostModel()
    plan = make_plan(shapes, options.form, target, cost)
    clock.start("exponentials")
    network = freeze(model.network, plan=plan, progress=clock.layers("freeze"))
    network = network.stored_as(options.weights)
    clock.start("prove")
    pixels = probe_inputs(model.examples.numpy(), network.image_size).astype(np.float64)
    distance = float(distances_upper(pixels, network.centre).max())
    if options.max_rounding_loss is not None:
        limit = 255 * options.max_rounding_loss
        if options.longest_sum is None:
            target = longest_sums(network, target, distance, limit)
        network, plan = within_loss(network, plan, shapes, options.form, target, distance, limit)
    manifest = make_manifest(
        network,
        model.card.classes,
        {"size": network.image_size, **PREPROCESSING},
        _source(model, options),
        _versions(),
        target.rounding,
    )
    lines = planned_layers(network, shapes, plan, target, distance, cost)
    clock.start("emit")
    # Read back as any reader would, so that what is checked is what the bytes say.
    return parse_onnx(onnx_bytes(network, manifest), f"{path}, frozen"), lines


def _source(model: TrainedModel, options: ExportOptions) -> dict[str, object]:
    card = asdict(model.card)
    kept = {key: card[key] for key in ("dataset", "command", "epochs")}
    return {
        **kept,
        "input_gain": INPUT_GAIN,
        "architecture": asdict(model.network.architecture),
        "trained_with": card["versions"],
        "model_sha256": model.sha256,
        "made_for_batch": options.batch,
    }


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("lipdeploy", "numpy", "onnx", "onnxruntime")}


class _Stopwatch:
    """Names and times the stages, one after the other."""

    def __init__(self, announce: Stage) -> None:
        self.seconds: dict[str, float] = {}
        self.announce = announce
        self._name, self._since = "load", time.perf_counter()
        announce(self._name)

    def start(self, name: str) -> None:
        """End the running stage, begin the next."""
        self.stop()
        self._name, self._since = name, time.perf_counter()
        self.announce(name)

    def layers(self, following: str) -> Callable[[int, int], None]:
        """Told how many layers are done of how many, it says so; after the last begins a stage."""

        def progress(done: int, total: int) -> None:
            if done == total:
                self.start(following)
            else:
                self.announce(f"{self._name}: layer {done + 1} of {total}")

        return progress

    def stop(self) -> None:
        """End the running stage."""
        self.seconds[self._name] = time.perf_counter() - self._since
