"""From model.pt to a checked engine file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lipdeploy.artifact import Engine, Manifest
from lipdeploy.built import onnx_beside
from lipdeploy.canary import canary_pixels
from lipdeploy.engine_error import distances_upper
from lipdeploy.exporters.engine_file import read_engine, write_engine
from lipdeploy.exporters.libraries import (
    beside,
    built,
    check_library,
    lacks_gpu,
    nearest_runtime,
)
from lipdeploy.exporters.options import ExportOptions, check_files, is_engine
from lipdeploy.exporters.parity import Parity, compare, hostile_inputs, probe_inputs
from lipdeploy.exporters.precision import Listener, PrecisionCost, ignore_cost, precision_cost
from lipdeploy.exporters.stages import Stage, Stopwatch, ignore_stage
from lipdeploy.exporters.triton import serve
from lipdeploy.files import check_output
from lipdeploy.runtimes import Runtime

if TYPE_CHECKING:
    from lipdeploy.exporters.planned import PlannedLayer
    from lipdeploy.exporters.trained import FrozenModel


@dataclass(frozen=True)
class Exported:
    """A written engine.

    Attributes:
        path: the file that was asked for.
        runs_here: the file to predict with on this machine: `path`, or the ONNX engine beside it
            where that needs a GPU and there is none.
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
    runs_here: Path
    files: dict[Path, int]
    manifest: Manifest
    parity: Parity
    checked: str
    program_cost: float
    rewrites: str
    plan: "tuple[PlannedLayer, ...]"
    seconds: dict[str, float]


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
    frozen = None if is_engine(model_path) else _frozen(model_path, options, clock)
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
        runs_here=onnx_beside(output) if lacks_gpu(engine, runtime) else output,
        files=files,
        manifest=engine.manifest,
        parity=parity,
        checked=runtime.description,
        program_cost=_program_cost(engine, pixels),
        rewrites=engine.built.record.kind if engine.built else "",
        plan=plan,
        seconds=clock.seconds,
    )


def _frozen(path: Path, options: ExportOptions, clock: Stopwatch) -> "FrozenModel":
    """What is made of a trained model; only this needs torch."""
    from lipdeploy.exporters.trained import freeze_model

    return freeze_model(path, options, clock)


def _made(
    source: "FrozenModel | Path", output: Path, options: ExportOptions, clock: Stopwatch
) -> "tuple[Engine, tuple[PlannedLayer, ...]]":
    """The engine, with the files of another library where one was asked for, and its plan."""
    plan: tuple[PlannedLayer, ...] = ()
    if isinstance(source, Path):
        engine = read_engine(source)
    else:
        engine, plan = source.certified(options, clock)
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
    frozen: "FrozenModel", lower: tuple[Engine, Runtime], output: Path, options: ExportOptions
) -> PrecisionCost:
    """The engine beside the one that would be written in float32."""
    in_float32 = replace(options, precision="float32")
    engine, _ = frozen.certified(in_float32, Stopwatch(ignore_stage))
    size = engine.network.image_size
    images = frozen.examples.astype(np.float32) if len(frozen.examples) else canary_pixels(size)
    float32 = beside(engine, lower[1], output, in_float32)
    at_most = _program_cost(lower[0], probe_inputs(frozen.examples, size))
    return precision_cost(lower, float32, images, options.batch, at_most)
