"""The few calls of CUDA that an engine needs: which GPU, memory, a stream, graphs.

`cuda-python` is imported when it is used; it can be imported and asked on machines without a GPU.
"""

import ctypes
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.errors import EngineError
from lipdeploy.runtimes import Pixels


@dataclass(frozen=True)
class Gpu:
    """What an engine can be tied to.

    Attributes:
        name: as CUDA gives it.
        compute_capability: "8.9".
        driver: the newest CUDA that the driver can run, "13.0".
    """

    name: str
    compute_capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.compute_capability}"


def cuda_api() -> Any:  # noqa: ANN401
    """The module `cuda.bindings.runtime`; raises EngineError where it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(
            "cuda-python is not installed; pip install 'lipdeploy[trt]' or 'lipdeploy[trt-rtx]'"
        ) from error
    return runtime


def checked(result: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """What a call of CUDA gave, None if that is nothing; raises EngineError where it failed."""
    error, *values = result
    if int(error):
        _, text = cuda_api().cudaGetErrorString(error)
        raise EngineError(f"CUDA failed ({text.decode()}); check nvidia-smi, or a smaller --batch")
    return values[0] if values else None


def find_gpu() -> Gpu | None:
    """The GPU that CUDA uses; None where there is none, or no driver.

    Raises:
        EngineError: if cuda-python is not installed.
    """
    cuda = cuda_api()
    error, count = cuda.cudaGetDeviceCount()
    if int(error) or not count:
        return None
    properties = checked(cuda.cudaGetDeviceProperties(checked(cuda.cudaGetDevice())))
    driver = checked(cuda.cudaDriverGetVersion())
    return Gpu(
        properties.name.decode().rstrip("\0"),
        f"{properties.major}.{properties.minor}",
        f"{driver // 1000}.{driver % 1000 // 10}",
    )


class Stream:
    """A CUDA stream of its own.

    Attributes:
        handle: its number, as libraries take it.
    """

    def __init__(self) -> None:
        self._cuda = cuda_api()
        stream = checked(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking))
        weakref.finalize(self, self._cuda.cudaStreamDestroy, stream)
        self.handle = int(stream)

    def wait(self) -> None:
        """Until all that was enqueued is done."""
        checked(self._cuda.cudaStreamSynchronize(self.handle))

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """What enqueues the same work again by one launch; None if the work cannot be captured.

        Args:
            enqueue: enqueues the work on this stream; raises EngineError if it cannot.
        """
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(cuda.cudaStreamBeginCapture(self.handle, mode))
        try:
            enqueue()
        except EngineError:
            cuda.cudaStreamEndCapture(self.handle)
            cuda.cudaGetLastError()  # forgets the failed capture
            return None
        graph = checked(cuda.cudaStreamEndCapture(self.handle))
        executable = checked(cuda.cudaGraphInstantiate(graph, 0))
        checked(cuda.cudaGraphDestroy(graph))
        return _Replay(executable, self.handle)


class _Replay:
    """Launches a captured graph."""

    def __init__(self, executable: Any, stream: int) -> None:  # noqa: ANN401
        self._cuda, self._executable, self._stream = cuda_api(), executable, stream
        weakref.finalize(self, self._cuda.cudaGraphExecDestroy, executable)

    def __call__(self) -> None:
        checked(self._cuda.cudaGraphLaunch(self._executable, self._stream))


class Mirror:
    """An array of float32 in pinned memory of the host, and its copy on the GPU.

    Attributes:
        host: the array; valid as long as this object.
        device: address of the copy.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._cuda = cuda = cuda_api()
        numbers = math.prod(shape)
        address = checked(cuda.cudaHostAlloc(4 * numbers, cuda.cudaHostAllocDefault))
        weakref.finalize(self, cuda.cudaFreeHost, address)
        self.device: int = checked(cuda.cudaMalloc(4 * numbers))
        weakref.finalize(self, cuda.cudaFree, self.device)
        memory = (ctypes.c_float * numbers).from_address(address)
        self.host: Pixels = np.ctypeslib.as_array(memory).reshape(shape)

    def upload(self, rows: int, stream: Stream) -> None:
        """Enqueue copying the first rows to the GPU."""
        self._copy(self.device, self.host.ctypes.data, rows, "HostToDevice", stream)

    def download(self, rows: int, stream: Stream) -> None:
        """Enqueue copying the first rows to the host."""
        self._copy(self.host.ctypes.data, self.device, rows, "DeviceToHost", stream)

    def _copy(self, to: int, source: int, rows: int, kind: str, stream: Stream) -> None:
        direction = getattr(self._cuda.cudaMemcpyKind, f"cudaMemcpy{kind}")
        size = rows * self.host[:1].nbytes
        checked(self._cuda.cudaMemcpyAsync(to, source, size, direction, stream.handle))
