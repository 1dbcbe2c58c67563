"""Running the bytes of an ONNX file with ONNX Runtime, exactly as they are.

Its optimiser is off: it would fuse products with additions and fold constants into new ones. On a
GPU TF32 is off, unless that is the arithmetic that the engine was certified for.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.choices import Device
from lipdeploy.errors import EngineError
from lipdeploy.runtimes import Array, Hint, Pixels
from lipdeploy.versions import (
    has_nvidia_tools,
    installed_onnxruntimes,
    onnxruntime_clash,
    reinstall_onnxruntime,
)


class OnnxRuntime:
    """An ONNX Runtime session on one device, never on another one than asked for.

    Args:
        data: bytes of an ONNX model.
        device: "cpu", "cuda", or "auto": CUDA where it can run, else the CPU.
        arithmetic: that of the model's body, see `lipdeploy.arithmetic.ARITHMETICS`.
        hint: with "latency" threads spin while they wait for the next node, so that none has to be
            woken; with "throughput" they leave the cores to those who decode and certify meanwhile.

    Attributes:
        device: "cpu" or "cuda", where it runs.
        runs_graph: False where it has no operations of the arithmetic and casts around each: on a
            CPU in half precision.

    Raises:
        EngineError: if ONNX Runtime is missing, or cannot run on the device.
    """

    def __init__(
        self,
        data: bytes,
        device: Device = "auto",
        arithmetic: str = "float32",
        hint: Hint = "throughput",
        *,
        _write_to: Path | None = None,
    ) -> None:
        self._library = _import(device)
        self.arithmetic, self._hint = arithmetic, hint
        self._write_to = _write_to
        self._session, used = self._open(data, device)
        self.device: Device = "cuda" if used == "cuda" else "cpu"
        self.runs_graph = arithmetic in ("float32", "tf32") or self.device == "cuda"
        self.description = f"onnxruntime {self._library.__version__}, {arithmetic}, {used}"

    def _open(self, data: bytes, device: Device) -> tuple[Any, str]:
        if device != "cpu" and "CUDAExecutionProvider" in self._library.get_available_providers():
            try:
                return self._cuda_session(data), "cuda"
            except EngineError as error:
                if device == "cuda":
                    raise
                return self._cpu_session(data), f"cpu ({error})"
        elif device == "cuda":
            reason = onnxruntime_clash() or "the installed ONNX Runtime has no CUDA"
            mend = reinstall_onnxruntime(for_gpu=True)
            raise EngineError(f"--device cuda: {reason}; use --device cpu, or {mend}")
        return self._cpu_session(data), "cpu"

    def _options(self) -> Any:  # noqa: ANN401
        options = self._library.SessionOptions()
        options.log_severity_level = 4
        options.use_deterministic_compute = True
        spins = str(int(self._hint == "latency"))
        options.add_session_config_entry("session.intra_op.allow_spinning", spins)
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._write_to is not None:
            options.optimized_model_filepath = str(self._write_to)
        options.graph_optimization_level = self._library.GraphOptimizationLevel.ORT_DISABLE_ALL
        return options

    def _cpu_session(self, data: bytes) -> Any:  # noqa: ANN401
        try:
            return self._library.InferenceSession(
                data, self._options(), providers=["CPUExecutionProvider"]
            )
        # ONNX Runtime's exceptions share no base class with each other.
        except Exception as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise EngineError(f"ONNX Runtime cannot load the engine ({reason})") from error

    def _cuda_session(self, data: bytes) -> Any:  # noqa: ANN401
        options = self._options()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = ("CUDAExecutionProvider", {"use_tf32": str(int(self.arithmetic == "tf32"))})
        try:
            session = self._library.InferenceSession(data, options, providers=[provider])
        except Exception as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            advice = "check nvidia-smi and the CUDA and cuDNN libraries"
            if clash := onnxruntime_clash():
                advice = f"mend this: {clash}; {reinstall_onnxruntime(for_gpu=True)}"
            raise EngineError(
                f"--device cuda: no usable GPU ({reason}); use --device cpu, or {advice}"
            ) from error
        if session.get_providers()[0] != "CUDAExecutionProvider":
            raise EngineError("--device cuda: ONNX Runtime fell back to the CPU; use --device cpu")
        return session

    def run(self, pixels: Pixels) -> tuple[Array, Array]:
        """Map pixels (batch, 3, n, n), 0 ... 255, to features and logits."""
        inputs = {"pixels": np.ascontiguousarray(pixels, dtype=np.float32)}
        features, logits = self.outputs(["features", "logits"], inputs)
        return features.astype(np.float64), logits.astype(np.float64)

    def outputs(
        self, names: list[str], inputs: dict[str, NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        """The values of some outputs of the model."""
        run = self.bound_outputs if self.device == "cuda" else self._session_outputs
        try:
            return run(names, inputs)
        # As above: no common base class.
        except Exception as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise EngineError(f"the engine failed ({reason}); try a smaller --batch") from error

    def _session_outputs(
        self, names: list[str], inputs: dict[str, NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        values: list[NDArray[np.float32]] = self._session.run(names, inputs)
        return values

    def bound_outputs(
        self, names: list[str], inputs: dict[str, NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        """The same, values copied to and from the device once: nothing else leaves it."""
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        for name in names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        values: list[NDArray[np.float32]] = binding.copy_outputs_to_cpu()
        return values

    def same_device(self, data: bytes) -> "OnnxRuntime":
        """Another model on the same device, with the same options."""
        return OnnxRuntime(data, self.device, self.arithmetic, self._hint)


def _import(device: Device) -> Any:  # noqa: ANN401
    """The library; raises EngineError where it is missing or broken."""
    try:
        import onnxruntime

        # What an uninstalled distribution leaves behind can be imported, and is empty.
        onnxruntime.InferenceSession  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise EngineError(_why_no_library(device, error)) from error
    return onnxruntime


def _why_no_library(device: Device, error: Exception) -> str:
    for_gpu = device == "cuda" or (device == "auto" and has_nvidia_tools())
    mend = reinstall_onnxruntime(for_gpu=for_gpu)
    if clash := onnxruntime_clash():
        return f"ONNX Runtime cannot be imported: {clash}; {mend}"
    is_missing = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime"
    is_left_over = isinstance(error, AttributeError) and not installed_onnxruntimes()
    if is_missing or is_left_over:
        return (
            "ONNX Runtime is not installed; pip install 'lipdeploy[onnx]' (CPU) or "
            "'lipdeploy[gpu]' (CUDA)"
        )
    reason = str(error).split("\n", maxsplit=1)[0]
    return f"ONNX Runtime cannot be imported ({reason}); {mend}"


def executed_graph(data: bytes) -> bytes:
    """The model that ONNX Runtime runs on the CPU when it is given these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "executed.onnx"
        OnnxRuntime(data, "cpu", _write_to=path)
        return path.read_bytes()
