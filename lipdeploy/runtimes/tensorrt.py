"""Running an engine of TensorRT, or of TensorRT for RTX, on the GPU that it was built for.

An engine is native code made for one version of the library and, in most cases, one GPU. Whether it
fits is decided from what was written down when it was built, before the library gets to see it.
"""

import functools
import shlex
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lipdeploy.arithmetic import ARITHMETICS
from lipdeploy.errors import EngineError
from lipdeploy.runtimes import Array, Pixels
from lipdeploy.runtimes.cuda import Gpu, Mirror, Stream, find_gpu

EXTRAS = {"tensorrt": "lipdeploy[trt]", "tensorrt_rtx": "lipdeploy[trt-rtx]"}
"""Packages that build and run engines, the preferred one first, and what installs them."""

INPUT, OUTPUTS = "pixels", ("features", "logits", "radius")

Hardware = Literal["same-gpu", "ampere-or-newer", "any"]
"""GPUs that an engine runs on; "any" leaves it to the library."""

NOISE = "Thread context has not been set"
"""What TensorRT for RTX reports as an error of every build."""

READY = 4
"""Batch sizes that are kept ready: each holds memory for all activations."""


@dataclass(frozen=True)
class Requirements:
    """What an engine needs.

    Attributes:
        package: "tensorrt" or "tensorrt_rtx".
        version: of the package, when it was built.
        is_version_compatible: whether later versions of the same major one run it, too.
        hardware: which GPUs run it.
        precision: arithmetic of its linear layers.
        gpu: the one it was built on; None if it was built without.
    """

    package: str
    version: str
    is_version_compatible: bool
    hardware: Hardware
    precision: str
    gpu: Gpu | None

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any], rebuild: str) -> "Requirements":
        """Read the settings of a build; raises EngineError if they are damaged."""
        try:
            gpu = None if settings["gpu"] is None else Gpu(**settings["gpu"])
            needed = cls(
                settings["package"],
                settings["version"],
                settings["version_compatible"],
                settings["hardware"],
                settings["precision"],
                gpu,
            )
            if needed.precision not in ARITHMETICS:
                raise ValueError(f"{needed.precision!r}")
            if needed.package not in EXTRAS or needed.hardware not in get_args(Hardware):
                raise ValueError(f"{needed.package!r}, {needed.hardware!r}")
            if not _numbers(needed.version) or (gpu and not _numbers(gpu.compute_capability)):
                raise ValueError(f"version {needed.version!r}, {gpu}")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(
                f"the settings of the engine are damaged ({error!r:.100}); build it anew: {rebuild}"
            ) from error
        return needed

    def check_version(self, version: str, rebuild: str) -> None:
        """Raise EngineError unless this version of the package runs the engine."""
        found, built = _numbers(version), _numbers(self.version)
        is_later = found[:1] == built[:1] and found > built
        if version != self.version and not (self.is_version_compatible and is_later):
            raise EngineError(
                f"the engine was built with {self.package} {self.version}, but {version} is "
                f"installed; install that version, or build the engine anew: {rebuild}"
            )

    def check_gpu(self, gpu: Gpu, rebuild: str) -> None:
        """Raise EngineError if the engine was built for another GPU."""
        is_old = _numbers(gpu.compute_capability) < (8, 0)
        if self.hardware == "ampere-or-newer" and is_old:
            raise EngineError(
                f"the engine needs compute capability 8.0, but the GPU is {gpu}; build the engine "
                f"anew: {rebuild}"
            )
        if self.hardware == "same-gpu" and self.gpu is not None and str(self.gpu) != str(gpu):
            raise EngineError(
                f"the engine was built on {self.gpu}, but the GPU is {gpu}; build the engine anew: "
                f"{rebuild}"
            )


class TensorRtRuntime:
    """An engine on the GPU, called through CUDA graphs.

    It computes in the types of its graph, without TF32 unless that was asked for, but merges and
    rearranges operations as the library likes: what runs is not the graph that bounds of rounding
    were proven for.

    Args:
        data: the engine. It is native code and will be executed: the caller has already compared
            its hash with the one that was written down when it was built.
        settings: those of `lipdeploy.exporters.tensorrt.TensorRtBuild`.
        profile: batch sizes that it takes: least, made for, most.
        rebuild: the command that builds such an engine here.
        onnx: the ONNX engine that it was built from, which runs without a GPU, too.

    Raises:
        EngineError: if the package or a GPU is missing, or the engine was built for another GPU or
            version, or cannot be loaded.
    """

    runs_graph: bool = False

    def __init__(
        self,
        data: bytes,
        settings: Mapping[str, Any],
        profile: tuple[int, int, int],
        rebuild: str,
        onnx: Path,
    ) -> None:
        needed = Requirements.of_settings(settings, rebuild)
        self.arithmetic = needed.precision
        library = find_library(needed.package)
        if library is None:
            raise EngineError(
                f"this engine needs {needed.package}; pip install '{EXTRAS[needed.package]}', or "
                f"build one for this machine: {rebuild}"
            )
        needed.check_version(library.__version__, rebuild)
        _check_header(library, data, needed, rebuild)
        gpu = find_gpu()
        if gpu is None:
            raise EngineError(
                f"{needed.package} runs on NVIDIA GPUs, and CUDA finds none here; check "
                f"nvidia-smi, or give the ONNX engine beside it: --model {shlex.quote(str(onnx))}"
            )
        needed.check_gpu(gpu, rebuild)
        self._least, _, self._most = profile
        self._loaded = _load(library, data, needed, self._most, rebuild)
        self._ready: OrderedDict[int, _Batch] = OrderedDict()
        self.description = f"{needed.package} {library.__version__}, {needed.precision}, {gpu}"

    def run(self, pixels: Pixels) -> tuple[Array, Array]:
        """Map pixels (batch, 3, n, n), 0 ... 255, to features and logits.

        Raises:
            EngineError: if the GPU fails.
        """
        parts = [self._piece(pixels[cut]) for cut in pieces(len(pixels), self._most)]
        features, logits = (np.concatenate(values) for values in zip(*parts, strict=True))
        return features, logits

    def _piece(self, pixels: Pixels) -> tuple[Array, Array]:
        """At most as many images as the profile takes."""
        given, mirrors = padded(pixels, self._least), self._loaded.mirrors
        rows = len(given)
        if rows not in self._ready:
            if len(self._ready) == READY:
                self._ready.popitem(last=False)
            self._ready[rows] = _Batch(self._loaded, rows)
        self._ready.move_to_end(rows)
        mirrors[INPUT].host[:rows] = given
        self._ready[rows].run()
        kept = slice(0, len(pixels))
        features, logits = (
            mirrors[name].host[kept].astype(np.float64) for name in ("features", "logits")
        )
        return features, logits


def pieces(count: int, most: int) -> list[slice]:
    """A batch cut into pieces of at most `most`; an empty one is one empty piece."""
    return [slice(start, min(start + most, count)) for start in range(0, max(count, 1), most)]


def padded(pixels: Pixels, least: int) -> Pixels:
    """At least `least` images; black ones are appended."""
    missing = max(least - len(pixels), 0)
    return np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), dtype=np.float32)])


def find_library(package: str) -> Any | None:  # noqa: ANN401
    """The module of that name; None where it cannot be imported."""
    try:
        if package == "tensorrt_rtx":
            import tensorrt_rtx

            return tensorrt_rtx
        import tensorrt
    except ImportError:
        return None
    return tensorrt


@functools.cache
def message_log(library: Any) -> Any:  # noqa: ANN401
    """A logger that keeps warnings and errors and prints nothing.

    One for each library and for all time, since the library keeps the first that it gets.
    """

    class MessageLog(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.messages: list[tuple[bool, str]] = []

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401
            is_error = severity in (self.INTERNAL_ERROR, self.ERROR)
            if is_error or severity == self.WARNING:
                self.messages.append((is_error, msg))

        def take(self) -> str:
            """The errors, or else the warnings, in one line; all messages are forgotten."""
            kept = [entry for entry in self.messages if not entry[1].startswith(NOISE)]
            errors = [text for is_error, text in kept if is_error]
            chosen = errors or [text for _, text in kept] or ["no reason given"]
            self.messages.clear()
            return " ".join("; ".join(chosen).split())[:400]

    return MessageLog()


@dataclass(frozen=True, eq=False)
class _Loaded:
    """An engine in the memory of the GPU.

    Attributes:
        library: the module that runs it.
        log: its messages.
        engine: its plan.
        stream: where it runs.
        mirrors: memory of inputs and outputs for the largest batch, by name.
    """

    library: Any
    log: Any
    engine: Any
    stream: Stream
    mirrors: dict[str, Mirror]

    def require(self, is_done: object) -> None:
        """Raise EngineError for what the library says that it has not done."""
        if not is_done:
            raise EngineError(f"the engine failed ({self.log.take()}); try a smaller --batch")


def _check_header(library: Any, data: bytes, needed: Requirements, rebuild: str) -> None:  # noqa: ANN401
    """Raise EngineError for what TensorRT for RTX will refuse; TensorRT says so only on loading."""
    if not hasattr(library.Runtime, "get_engine_validity"):
        return
    log = message_log(library)
    _, found = library.Runtime(log).get_engine_validity(data)
    log.take()
    reasons = library.EngineInvalidityDiagnostics.__members__.items()
    named = [name.lower().replace("_", " ") for name, bit in reasons if found & int(bit)]
    if named:
        raise EngineError(
            f"{needed.package} does not run the engine here ({', '.join(named)}); build it anew: "
            f"{rebuild}"
        )


def _load(
    library: Any,  # noqa: ANN401
    data: bytes,
    needed: Requirements,
    most: int,
    rebuild: str,
) -> _Loaded:
    """Raises EngineError where the library refuses the engine."""
    log = message_log(library)
    runtime = library.Runtime(log)
    # A version-compatible engine brings code that runs on the host.
    runtime.engine_host_code_allowed = needed.is_version_compatible
    engine = runtime.deserialize_cuda_engine(data)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)] if engine else []
    if sorted(names) != sorted([INPUT, *OUTPUTS]):
        raise EngineError(
            f"{needed.package} cannot run the engine ({log.take()}); build it anew: {rebuild}"
        )
    mirrors = {name: Mirror((most, *engine.get_tensor_shape(name)[1:])) for name in names}
    return _Loaded(library, log, engine, Stream(), mirrors)


class _Batch:
    """One batch size: an execution context of its own, and the CUDA graph of a call.

    A captured graph holds on to the shapes and the memory of its context, which therefore never
    gets another batch size.
    """

    def __init__(self, loaded: _Loaded, rows: int) -> None:
        self._loaded, self._rows, stream = loaded, rows, loaded.stream
        self._context = context = _new_context(loaded.library, loaded.engine)
        loaded.require(context is not None)
        loaded.require(context.set_optimization_profile_async(0, stream.handle))
        stream.wait()
        shape = (rows, *loaded.mirrors[INPUT].host.shape[1:])
        loaded.require(context.set_input_shape(INPUT, shape))
        for name, mirror in loaded.mirrors.items():
            loaded.require(context.set_tensor_address(name, mirror.device))
        # The first call may compile and allocate, which no graph can hold.
        self._enqueue()
        stream.wait()
        self._launch = stream.capture(self._enqueue) or self._enqueue

    def run(self) -> None:
        """From the input's memory on the host to that of the outputs."""
        self._launch()
        self._loaded.stream.wait()

    def _enqueue(self) -> None:
        stream, mirrors = self._loaded.stream, self._loaded.mirrors
        mirrors[INPUT].upload(self._rows, stream)
        self._loaded.require(self._context.execute_async_v3(stream.handle))
        for name in ("features", "logits"):
            mirrors[name].download(self._rows, stream)


def _new_context(library: Any, engine: Any) -> Any:  # noqa: ANN401
    """An execution context; None where there is no memory for it."""
    strategy = getattr(library, "DynamicShapesKernelSpecializationStrategy", None)
    if strategy is None:
        return engine.create_execution_context()
    # By default it would go over to other kernels, which round differently, while it runs.
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
    return engine.create_execution_context(config)


def _numbers(version: str) -> tuple[int, ...]:
    """10.13.3.9.post1 as (10, 13, 3, 9)."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())
