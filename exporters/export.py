"""From model.pt to a checked engine file."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lipdeploy.artifact import PRECISIONS, Engine, Manifest, make_manifest
from lipdeploy.canary import canary_difference
from lipdeploy.choices import check_choice
from lipdeploy.engine_error import distances_upper
from lipdeploy.errors import EngineError, ExportError, UsageError
from lipdeploy.exporters.engine_file import read_engine, with_built, write_engine
from lipdeploy.exporters.freeze import freeze, layer_shapes
from lipdeploy.exporters.onnx import build_model
from lipdeploy.exporters.onnx_cost import CostModel
from lipdeploy.exporters.onnx_file import onnx_bytes, parse_onnx
from lipdeploy.exporters.parity import Parity, compare, hostile_inputs, probe_inputs
from lipdeploy.exporters.plan import FORM_CHOICES, FormChoice, Target, make_plan
from lipdeploy.exporters.planned import (
    PlannedLayer,
    longest_sums,
    planned_layers,
    within_loss,
)
from lipdeploy.exporters.triton import write_triton
from lipdeploy.exporters.tune import Tuner
from lipdeploy.files import check_output
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.images import PREPROCESSING
from lipdeploy.rounding import (
    ACCUMULATIONS,
    ARITHMETICS,
    FLOAT32,
    LARGEST_LIMIT,
    SHORTEST_LIMIT,
    Accumulation,
    Rounding,
)
from lipdeploy.runtimes import Runtime
from lipdeploy.runtimes.choice import open_runtime
from lipdeploy.runtimes.cuda import find_gpu
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.training.checkpoint import TrainedModel, load_model
from lipdeploy.training.lipconvnet import INPUT_GAIN
from lipdeploy.versions import installed_version

WeightsType = Literal["float16", "float32"]
WEIGHTS_TYPES: tuple[WeightsType, ...] = ("float16", "float32")
ENGINES = ("onnx", "openvino", "trt")
ALIASES = {"tensorrt": "trt", "engine": "trt"}
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "trt": ".engine"}
MEASURED_HERE = ("float32", "float16")
"""Arithmetics that ONNX Runtime has, or imitates, on a CPU."""

Stage = Callable[[str], None]


def ignore_stage(name: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        engine: "onnx", "openvino" or "trt".
        form: form of the linear layers, or "auto".
        precision: the arithmetic of the linear layers, see `lipdeploy.rounding.ARITHMETICS`; the
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
        if self.precision != "float32" and self.accumulation == "same-order":
            raise UsageError(
                "--accumulation same-order: nothing is known of the order of sums on tensor cores; "
                "leave it out with --precision"
            )
        if self.precision != "float32" and self.triton is not None:
            raise UsageError(f"--triton: no radius is proven for a server in {self.precision}")
        if self.precision != "float32" and self.kind == "openvino":
            raise UsageError("--engine openvino is held to float32; leave out --precision")
        check_choice("--accumulation", self.accumulation, ACCUMULATIONS)
        if self.triton is not None and self.kind == "openvino":
            raise UsageError(
                "--triton: Triton cannot hold OpenVINO to float32; use --engine onnx or trt"
            )
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
    def kind(self) -> str:
        """The engine, under its first name."""
        return ALIASES.get(self.engine, self.engine)

    @property
    def target(self) -> Target:
        """What the plan is made for."""
        rounding = Rounding.of_graph(ARITHMETICS[self.precision], self.accumulation)
        longest = self.longest_sum or rounding.block
        return Target(self.batch, replace(rounding, block=longest))


@dataclass(frozen=True)
class Exported:
    """A written engine.

    Attributes:
        path: the file to predict with.
        files: all that were written, with their bytes.
        manifest: what it says of itself.
        parity: how it compares with float64.
        checked: what ran in that comparison.
        program_cost: what the statement *program* takes of a radius for rounding of the features,
            in units of 1/255, at most, on the inputs of the comparison.
        rewrites: the library that runs it, where that is not ONNX Runtime; else empty.
        plan: how each layer is evaluated, and what that costs; empty where an engine was rebuilt.
        seconds: time of each stage; "exponentials" is that of all layers, almost only exponentials,
            "freeze" the rest of freezing.
    """

    path: Path
    files: dict[Path, int]
    manifest: Manifest
    parity: Parity
    checked: str
    program_cost: float
    rewrites: str
    plan: tuple[PlannedLayer, ...]
    seconds: dict[str, float]


def export_model(
    model_path: Path, output: Path, options: ExportOptions, stage: Stage = ignore_stage
) -> Exported:
    """Freeze, prove, check against the float64 reference, write; a failed check writes nothing.

    Args:
        model_path: a model.pt; or an ONNX engine, to build another engine from.
        output: the file; others of its family are written beside it.
        options: what to write.
        stage: told what is being done.

    Raises:
        LipdeployError: if the model cannot be read, frozen, proven, built, written, or fails the
            check.
    """
    if output.resolve() == model_path.resolve():
        raise UsageError(f"--output {output}: is the model itself; give another name")
    expected = SUFFIXES[options.kind]
    is_other = output.suffix != expected and (options.kind != "onnx" or is_engine(output))
    if is_other:
        raise UsageError(f"--output {output}: an engine for {options.kind} is named *{expected}")
    check_output(output)
    if is_engine(model_path):
        _check_rebuild(model_path, options)
    clock = _Stopwatch(stage)
    plan: tuple[PlannedLayer, ...] = ()
    examples: NDArray[Any] = np.empty(0)
    if is_engine(model_path):
        engine = read_engine(model_path)
    else:
        model = load_model(model_path)
        engine, plan = _build(model, model_path, options, clock)
        examples = model.examples.numpy()
    if options.kind != "onnx":
        clock.start("build")
        engine = _built(engine, output, options)
    clock.start("check")
    size = engine.network.image_size
    pixels = probe_inputs(examples, size)
    checked = _runtime(engine)
    inputs = np.concatenate([pixels, hostile_inputs(size)])
    parity = compare(engine.network, engine.manifest, checked, inputs)
    if options.triton is not None:
        _check_triton(engine)
    clock.start("write")
    files = write_engine(engine, output)
    if options.triton is not None:
        _write_triton(engine, output, options.triton)
    clock.stop()
    distances = distances_upper(pixels.astype(np.float64), engine.network.centre)
    errors = engine.manifest.engine_errors.features(distances)
    cost = 2 * float(errors.max()) / engine.manifest.lipschitz_upper
    return Exported(
        path=output,
        files=files,
        manifest=engine.manifest,
        parity=parity,
        checked=checked.description,
        program_cost=cost,
        rewrites=engine.built.record.kind if engine.built else "",
        plan=plan,
        seconds=clock.seconds,
    )


def _check_rebuild(path: Path, options: ExportOptions) -> None:
    """Raise UsageError for what an engine has already decided."""
    if options.kind == "onnx":
        raise UsageError(f"{path}: an engine already; give a model.pt, or --engine openvino or trt")
    for name in ("form", "precision", "weights", "accumulation", "longest_sum", "tune"):
        if getattr(options, name) != getattr(ExportOptions(), name):
            option = name.replace("_", "-")
            raise UsageError(
                f"--{option}: {path.name} is an engine, of which that cannot be changed any more; "
                "export the model.pt again"
            )


def _check_triton(engine: Engine) -> None:
    """Raise ExportError for what Triton does not load."""
    if engine.built is not None and engine.built.record.settings["package"] != "tensorrt":
        raise ExportError(
            "--triton: Triton loads plans of TensorRT, and this is an engine of TensorRT for RTX; "
            "pip install 'lipdeploy[trt]' on the GPU of the server, or use --engine onnx"
        )


def _write_triton(engine: Engine, output: Path, folder: Path) -> None:
    """What `lipdeploy predict` runs, for a server."""
    if engine.built is None:
        write_triton(
            engine,
            folder,
            name=output.stem,
            platform="onnxruntime_onnx",
            file=engine.prepared,
            file_name="model.onnx",
        )
        return
    (data,) = engine.built.files.values()
    write_triton(
        engine,
        folder,
        name=output.stem,
        platform="tensorrt_plan",
        file=data,
        file_name="model.plan",
        max_batch=engine.built.record.settings["profile"]["most"],
    )


def is_engine(path: Path) -> bool:
    """Whether a file is an engine, by its name, from which another one can be built."""
    return path.suffix in (*SUFFIXES.values(), ".plan")


def _runtime(engine: Engine) -> Runtime:
    """What the engine runs on; where that cannot be here, something else with the same graph."""
    needs_gpu = engine.built is not None and engine.built.record.kind == "tensorrt"
    if engine.manifest.arithmetic == "bfloat16":
        return open_runtime(engine, "torch", "cpu")
    try:
        return open_runtime(engine)
    except EngineError:
        if not needs_gpu or find_gpu() is not None:
            raise
        return open_runtime(engine, "onnxruntime", "cpu")


def _built(engine: Engine, output: Path, options: ExportOptions) -> Engine:
    """The engine with the files of another library."""
    if options.kind == "openvino":
        from lipdeploy.exporters.openvino import build_openvino

        made = build_openvino(engine.prepared)
        return with_built(engine, output, made.files, made.versions, {})
    from lipdeploy.exporters.tensorrt import Profile, build_tensorrt

    profile = Profile(1, options.batch, options.max_batch)
    build = build_tensorrt(
        engine.prepared,
        profile,
        precision=engine.manifest.arithmetic,
        is_portable=options.portable,
    )
    return with_built(engine, output, {output.suffix: build.data}, build.versions, build.settings)


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
    if options.precision != FLOAT32.name:
        network = network.rounded_to(ARITHMETICS[options.precision])
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
    manifest = manifest.with_canary(_canary(network, manifest), network.weights())
    # Read back as any reader would, so that what is checked is what the bytes say.
    return parse_onnx(onnx_bytes(network, manifest), f"{path}, frozen"), lines


def _canary(network: FrozenNetwork, manifest: Manifest) -> float:
    """What an honest runtime of this arithmetic differs by; 0 where none can be here."""
    if manifest.arithmetic not in MEASURED_HERE:
        return 0.0
    data = bytes(build_model(network, manifest, prepared=True).SerializeToString())
    return canary_difference(network, OnnxRuntime(data, "cpu", manifest.arithmetic))


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
    names = ("lipdeploy", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu")
    found = {name: installed_version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


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
