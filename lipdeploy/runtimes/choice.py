"""Which runtime an engine gets."""

from typing import Literal, get_args

from lipdeploy.artifact import Engine
from lipdeploy.choices import DEVICES, Device, check_choice
from lipdeploy.errors import EngineError, UsageError
from lipdeploy.runtimes import Runtime, hint_for
from lipdeploy.runtimes.numpy import NumpyRuntime
from lipdeploy.runtimes.onnx import OnnxRuntime

RuntimeChoice = Literal["auto", "onnxruntime", "openvino", "tensorrt", "torch", "numpy"]
RUNTIMES: tuple[RuntimeChoice, ...] = get_args(RuntimeChoice)

ON_CPU = ("openvino", "numpy")


def own_runtime(engine: Engine) -> RuntimeChoice:
    """The runtime that an engine was exported for."""
    return "onnxruntime" if engine.built is None else engine.built.record.kind


def check_runtime(choice: str, device: str) -> None:
    """Raise UsageError for a name that is none, and for a device that a runtime does not have."""
    check_choice("--runtime", choice, RUNTIMES)
    check_choice("--device", device, DEVICES)
    if choice in ON_CPU and device == "cuda":
        raise UsageError(
            f"--device cuda: {choice} has no GPU here; use --device cpu, or --runtime onnxruntime"
        )
    if choice == "tensorrt" and device == "cpu":
        raise UsageError("--device cpu: TensorRT needs a GPU; use --runtime onnxruntime")


def open_runtime(
    engine: Engine, choice: RuntimeChoice = "auto", device: Device = "auto"
) -> Runtime:
    """Make an engine ready to run.

    Args:
        engine: any; OpenVINO and torch also run what was exported as ONNX.
        choice: "auto" for the runtime that the engine was exported for.
        device: "auto", "cpu" or "cuda".

    Raises:
        UsageError: if the runtime does not run this kind of engine, or not on the device.
        EngineError: if it is not installed, or cannot run here.
    """
    chosen = own_runtime(engine) if choice == "auto" else choice
    check_runtime(chosen, device)
    built, arithmetic = engine.built, engine.manifest.arithmetic
    if chosen == "openvino" and arithmetic != "float32":
        raise UsageError(
            f"{engine.name}: computes in {arithmetic}, OpenVINO is held to float32 here; use "
            "--runtime onnxruntime, or export with --precision float32"
        )
    if chosen == "numpy":
        return NumpyRuntime(engine.network)
    if chosen == "onnxruntime":
        hint = hint_for(engine.manifest.source.get("made_for_batch"))
        return OnnxRuntime(engine.prepared, device, arithmetic, hint)
    if chosen == "openvino":
        from lipdeploy.exporters.openvino import check_openvino
        from lipdeploy.runtimes.openvino import OpenVinoRuntime

        check_openvino(engine)
        return OpenVinoRuntime(engine.prepared)
    if chosen == "torch":
        from lipdeploy.runtimes.torch import TorchRuntime

        return TorchRuntime(engine.prepared, device, arithmetic=arithmetic)
    if built is None or built.record.kind != "tensorrt":
        raise UsageError(
            f"--runtime tensorrt: {engine.name} is no TensorRT engine; make one with 'lipdeploy "
            "export --engine trt'"
        )
    from lipdeploy.runtimes.tensorrt import TensorRtRuntime

    (data,) = built.files.values()
    settings = built.record.settings
    try:
        least, best, most = (int(settings["profile"][name]) for name in ("least", "best", "most"))
        if not 1 <= least <= best <= most:
            raise ValueError(f"{least}, {best}, {most}")
    except (LookupError, TypeError, ValueError) as error:
        raise EngineError(
            f"{engine.name}: the record has no batch sizes; type '{built.rebuild}'"
        ) from error
    return TensorRtRuntime(data, settings, (least, best, most), built.rebuild, built.onnx)
