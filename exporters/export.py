"""From model.pt to a checked engine file."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.arithmetic import ARITHMETICS
from lipdeploy.artifact import Engine, Manifest, make_manifest
from lipdeploy.canary import canary_difference, canary_pixels
from lipdeploy.engine_error import distances_upper
from lipdeploy.exporters.engine_file import read_engine, write_engine
from lipdeploy.exporters.freeze import freeze, layer_shapes
from lipdeploy.exporters.libraries import beside, built, check_library, nearest_runtime
from lipdeploy.exporters.onnx import build_model
from lipdeploy.exporters.onnx_cost import CostModel
from lipdeploy.exporters.onnx_file import onnx_bytes, parse_onnx
from lipdeploy.exporters.options import ExportOptions, check_files, is_engine
from lipdeploy.exporters.parity import Parity, compare, hostile_inputs, probe_inputs
from lipdeploy.exporters.plan import Choice, Cost, LayerShape, make_plan
from lipdeploy.exporters.planned import (
    PlannedLayer,
    longest_sums,
    planned_layers,
    within_loss,
)
from lipdeploy.exporters.precision import Listener, PrecisionCost, ignore_cost, precision_cost
from lipdeploy.exporters.stages import Stage, Stopwatch, ignore_stage
from lipdeploy.exporters.triton import serve
from lipdeploy.exporters.tune import Tuner
from lipdeploy.files import check_output
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.images import PREPROCESSING
from lipdeploy.runtimes import Runtime
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.training.checkpoint import TrainedModel, load_model
from lipdeploy.training.lipconvnet import INPUT_GAIN
from lipdeploy.versions import installed_version

MEASURED_HERE = ("float32", "float16")
"""Arithmetics that ONNX Runtime has, or imitates, on a CPU."""


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


@dataclass(frozen=True, eq=False)
class _Frozen:
    """A network in float64 precision of its stored weights, not yet of any engine's arithmetic.

    Attributes:
        model: what was trained.
        path: its file.
        network: frozen, its weights stored as asked for.
        shapes: of its linear layers.
        plan: how each is evaluated.
        cost: what the plan was made with.
    """

    model: TrainedModel
    path: Path
    network: FrozenNetwork
    shapes: tuple[LayerShape, ...]
    plan: tuple[Choice, ...]
    cost: Cost

    @property
    def examples(self) -> NDArray[Any]:
        """Real images, shape (count, 3, n, n), 0 ... 255."""
        examples: NDArray[Any] = self.model.examples.numpy()
        return examples


def export_model(
    model_path: Path,
    output: Path,
    options: ExportOptions,
    stage: Stage = ignore_stage,
    tell: Listener = ignore_cost,
) -> Exported:
    """Freeze, prove, check against the float64 reference, write; a failed check writes nothing.

    Args:
        model_path: a model.pt; or an ONNX engine, to build another engine from.
        output: the file; others of its family are written beside it.
        options: what to write.
        stage: told what is being done.
        tell: told what a lower precision costs and gains, before anything is written.

    Raises:
        LipdeployError: if the model cannot be read, frozen, proven, built, written, or fails the
            check.
    """
    check_files(model_path, output, options)
    check_output(output)
    check_library(options)
    clock = Stopwatch(stage)
    frozen = None if is_engine(model_path) else _freeze(model_path, options, clock)
    engine, plan = _made(frozen or model_path, output, options, clock)
    clock.start("check")
    size = engine.network.image_size
    pixels = probe_inputs(frozen.examples if frozen else np.empty(0), size)
    inputs, runtime = np.concatenate([pixels, hostile_inputs(size)]), nearest_runtime(engine)
    parity = compare(engine.network, engine.manifest, runtime, inputs)
    if frozen is not None and options.has_lower_precision:
        clock.start("compare")
        tell(_cost_of_precision(frozen, (engine, runtime), output, options))
    clock.start("write")
    files = write_engine(engine, output)
    if options.triton is not None:
        serve(engine, options.triton, output.stem)
    clock.stop()
    return Exported(
        path=output,
        files=files,
        manifest=engine.manifest,
        parity=parity,
        checked=runtime.description,
        program_cost=_program_cost(engine, pixels),
        rewrites=engine.built.record.kind if engine.built else "",
        plan=plan,
        seconds=clock.seconds,
    )


def build_engine(model_path: Path, options: ExportOptions, stage: Stage = ignore_stage) -> Engine:
    """The engine that `export_model` would write, in memory.

    Raises:
        LipdeployError: as `export_model`.
    """
    clock = Stopwatch(stage)
    return _certify(_freeze(model_path, options, clock), options, clock)[0]


def _freeze(path: Path, options: ExportOptions, clock: Stopwatch) -> _Frozen:
    """The network of a model file, planned and frozen."""
    model = load_model(path)
    clock.start("tune" if options.tune else "plan")
    shapes = tuple(layer_shapes(model.network))
    cost = Tuner(announce=clock.announce) if options.tune else CostModel()
    plan = make_plan(shapes, options.form, options.target, cost)
    clock.start("exponentials")
    network = freeze(model.network, plan=plan, progress=clock.layers("freeze"))
    return _Frozen(model, path, network.stored_as(options.weights), shapes, plan, cost)


def _certify(
    frozen: _Frozen, options: ExportOptions, clock: Stopwatch
) -> tuple[Engine, tuple[PlannedLayer, ...]]:
    """The engine in the arithmetic that was asked for, its bounds proven, and its plan."""
    network, plan, target = frozen.network, frozen.plan, options.target
    if options.has_lower_precision:
        network = network.rounded_to(ARITHMETICS[options.precision])
    clock.start("prove")
    pixels = probe_inputs(frozen.examples, network.image_size).astype(np.float64)
    distance = float(distances_upper(pixels, network.centre).max())
    if options.max_rounding_loss is not None:
        limit = 255 * options.max_rounding_loss
        if options.longest_sum is None:
            target = longest_sums(network, target, distance, limit)
        network, plan = within_loss(
            network, plan, frozen.shapes, options.form, target, distance, limit
        )
    manifest = make_manifest(
        network,
        frozen.model.card.classes,
        {"size": network.image_size, **PREPROCESSING},
        _source(frozen.model, options),
        _versions(),
        target.rounding,
    )
    lines = planned_layers(network, frozen.shapes, plan, target, distance, frozen.cost)
    clock.start("emit")
    manifest = manifest.with_canary(_canary(network, manifest), network.weights())
    # Read back as any reader would, so that what is checked is what the bytes say.
    return parse_onnx(onnx_bytes(network, manifest), f"{frozen.path}, frozen"), lines


def _made(
    source: _Frozen | Path, output: Path, options: ExportOptions, clock: Stopwatch
) -> tuple[Engine, tuple[PlannedLayer, ...]]:
    """The engine, with the files of another library where one was asked for, and its plan."""
    plan: tuple[PlannedLayer, ...] = ()
    if isinstance(source, Path):
        engine = read_engine(source)
    else:
        engine, plan = _certify(source, options, clock)
    if options.kind != "onnx":
        clock.start("build")
        engine = built(engine, output, options)
    return engine, plan


def _program_cost(engine: Engine, pixels: NDArray[np.float32]) -> float:
    """See `Exported`."""
    distances = distances_upper(pixels.astype(np.float64), engine.network.centre)
    errors = engine.manifest.engine_errors.features(distances)
    return 2 * float(errors.max()) / engine.manifest.lipschitz_upper


def _cost_of_precision(
    frozen: _Frozen, lower: tuple[Engine, Runtime], output: Path, options: ExportOptions
) -> PrecisionCost:
    """The engine beside the one that would be written in float32."""
    in_float32 = replace(options, precision="float32")
    engine, _ = _certify(frozen, in_float32, Stopwatch(ignore_stage))
    size = engine.network.image_size
    images = frozen.examples.astype(np.float32) if len(frozen.examples) else canary_pixels(size)
    float32 = beside(engine, lower[1], output, in_float32)
    at_most = _program_cost(lower[0], probe_inputs(frozen.examples, size))
    return precision_cost(lower, float32, images, options.batch, at_most)


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
