"""The libraries that make engines of a graph: whether they are there, what they build and run."""

from pathlib import Path

from lipdeploy.artifact import Engine
from lipdeploy.errors import EngineError
from lipdeploy.exporters.engine_file import with_built
from lipdeploy.exporters.onnx_file import served_bytes
from lipdeploy.exporters.openvino import build_openvino, import_openvino
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.exporters.tensorrt import Profile, build_tensorrt, find_builder
from lipdeploy.exporters.triton import check_plan
from lipdeploy.runtimes import Runtime
from lipdeploy.runtimes.choice import open_runtime
from lipdeploy.runtimes.cuda import find_gpu
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.runtimes.tensorrt import TensorRtRuntime
from lipdeploy.runtimes.torch import TorchRuntime


def check_library(options: ExportOptions) -> None:
    """Raise ExportError, before any work, for an engine that cannot be built here."""
    if options.kind == "openvino":
        import_openvino()
    elif options.kind == "trt":
        package, _ = find_builder()
        if options.triton is not None:
            check_plan(package)


def built(engine: Engine, output: Path, options: ExportOptions) -> Engine:
    """The engine with the files of the library that was asked for.

    Raises:
        ExportError: if it is missing or refuses the graph.
    """
    if options.kind == "onnx":
        return engine
    if options.kind == "openvino":
        made = build_openvino(engine.prepared)
        return with_built(engine, output, made.files, made.versions, {})
    build = build_tensorrt(
        served_bytes(engine),
        Profile(1, options.batch, options.max_batch),
        precision=engine.manifest.arithmetic,
        is_portable=options.portable,
    )
    return with_built(engine, output, {output.suffix: build.data}, build.versions, build.settings)


def nearest_runtime(engine: Engine) -> Runtime:
    """What the engine runs on; where that cannot be here, something else with the same graph.

    Raises:
        EngineError: if nothing runs it.
    """
    needs_gpu = engine.built is not None and engine.built.record.kind == "tensorrt"
    if engine.manifest.arithmetic == "bfloat16":
        return open_runtime(engine, "torch", "cpu")
    try:
        return open_runtime(engine)
    except EngineError:
        if not needs_gpu or find_gpu() is not None:
            raise
        return open_runtime(engine, "onnxruntime", "cpu")


def beside(
    engine: Engine, like: Runtime, output: Path, options: ExportOptions
) -> tuple[Engine, Runtime]:
    """Another engine for the same library, and the kind of runtime that the first one has.

    Raises:
        LipdeployError: as `built` and `nearest_runtime`.
    """
    if isinstance(like, TorchRuntime):
        return engine, open_runtime(engine, "torch", "cpu")
    if isinstance(like, OnnxRuntime):
        return engine, open_runtime(engine, "onnxruntime", like.device)
    made = built(engine, output, options)
    return made, open_runtime(made)


def is_imitated(runtime: Runtime) -> bool:
    """Whether it has other operations than the graph, and rounds their results: half on a CPU."""
    return isinstance(runtime, OnnxRuntime) and not runtime.runs_graph


def has_own_arithmetic(engine: Engine, runtime: Runtime) -> bool:
    """Whether results are rounded as in the engine's arithmetic: TF32 is none of a CPU."""
    is_on_cpu = isinstance(runtime, OnnxRuntime) and runtime.device == "cpu"
    return not (is_on_cpu and engine.manifest.arithmetic == "tf32")


def lacks_gpu(engine: Engine, runtime: Runtime) -> bool:
    """Whether it is one of TensorRT and there is no GPU here: `runtime` is something else."""
    is_tensorrt = engine.built is not None and engine.built.record.kind == "tensorrt"
    return is_tensorrt and not isinstance(runtime, TensorRtRuntime)


def why_not_itself(engine: Engine, runtime: Runtime) -> str:
    """Why the time of this runtime would say nothing about the engine; empty where it does."""
    if engine.built and lacks_gpu(engine, runtime):
        package = engine.built.record.settings["package"]
        return f"{package} runs on NVIDIA GPUs, and CUDA finds none here"
    if not has_own_arithmetic(engine, runtime):
        return "no CPU computes in tf32, and no GPU can be used here"
    return ""
