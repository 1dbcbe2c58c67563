"""Building engines of TensorRT and of TensorRT for RTX from the bytes of an ONNX model.

Both packages have the same interface. TensorRT builds on the GPU that the engine is for; TensorRT
for RTX also without any GPU, and chooses kernels when the engine is loaded.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lipdeploy.errors import EngineError, ExportError, UsageError
from lipdeploy.exporters.tensorrt_builder import ANSWER, ENGINE, MODEL, SETTINGS
from lipdeploy.runtimes.cuda import Gpu, find_gpu
from lipdeploy.runtimes.tensorrt import EXTRAS, find_library

BUILD = "import sys; from lipdeploy.exporters.tensorrt_builder import main; main(sys.argv[1])"
FIX_ADDRESSES = """import ctypes, os, sys
ctypes.CDLL(None).personality(0x0040000)  # ADDR_NO_RANDOMIZE, kept by what is run next
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Programs: one that builds, and one that runs another with memory at the same addresses."""


@dataclass(frozen=True)
class Profile:
    """Batch sizes that an engine takes.

    Attributes:
        least: the smallest.
        best: the one that it is made fast for.
        most: the largest.

    Raises:
        UsageError: unless 1 <= least <= best <= most.
    """

    least: int
    best: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.best <= self.most:
            raise UsageError(
                f"batches of {self.least}, {self.best}, {self.most}: expected 1 <= least <= "
                "made for <= most, for example 1, 64, 64"
            )


@dataclass(frozen=True)
class TensorRtBuild:
    """A built engine.

    Attributes:
        data: the engine as the package's own tools take it (trtexec and Triton for TensorRT).
        package: "tensorrt" or "tensorrt_rtx".
        versions: of the package and its ONNX parser.
        settings: plain values, how it was built and what it needs, for
            `lipdeploy.runtimes.tensorrt.Requirements`.
    """

    data: bytes
    package: str
    versions: dict[str, str]
    settings: dict[str, Any]


def build_tensorrt(
    onnx_bytes: bytes,
    profile: Profile,
    *,
    precision: str = "float32",
    is_portable: bool = False,
) -> TensorRtBuild:
    """Build an engine with TensorRT, or else with TensorRT for RTX, whichever is installed.

    A process of its own builds: the order in which TensorRT for RTX writes things depends on their
    addresses in memory. So the same engine is the same bytes where the system, as Linux does
    outside of most containers, can give every process the same addresses.

    Args:
        onnx_bytes: `lipdeploy.exporters.onnx_file.served_bytes`.
        profile: batch sizes that it takes.
        precision: arithmetic of the model's linear layers, see `lipdeploy.arithmetic.ARITHMETICS`.
        is_portable: whether it should run on other GPUs and later versions, where the package can
            do that; it may be slower.

    Raises:
        ExportError: as `find_builder`, or if the model is refused.
    """
    package, gpu = find_builder()
    settings = {
        "package": package,
        "profile": asdict(profile),
        "precision": precision,
        "portable": is_portable,
        "gpu": None if gpu is None else asdict(gpu),
    }
    with tempfile.TemporaryDirectory() as folder:
        answer, data = _run_builder(Path(folder), onnx_bytes, settings)
    return TensorRtBuild(data, package, answer["versions"], settings | answer["settings"])


def find_builder() -> tuple[str, Gpu | None]:
    """The package that builds here, the first that is installed, and the GPU that it builds for.

    Raises:
        ExportError: if no package is installed, or TensorRT has no GPU.
    """
    package, gpu = _installed(), _gpu()
    if package == "tensorrt" and gpu is None:
        raise ExportError(
            "tensorrt builds on the GPU that an engine is for, and CUDA finds none here; check "
            "nvidia-smi, or pip uninstall tensorrt and pip install 'lipdeploy[trt-rtx]'"
        )
    return package, gpu


def _installed() -> str:
    """The first package that is installed."""
    for package in EXTRAS:
        if find_library(package) is not None:
            return package
    raise ExportError(
        "TensorRT is not installed; pip install 'lipdeploy[trt-rtx]' (TensorRT for RTX, builds "
        "without a GPU) or 'lipdeploy[trt]' (TensorRT, on the GPU that the engine is for)"
    )


def _gpu() -> Gpu | None:
    try:
        return find_gpu()
    except EngineError as error:
        raise ExportError(str(error)) from error


def _run_builder(
    folder: Path, onnx_bytes: bytes, settings: dict[str, Any]
) -> tuple[dict[str, Any], bytes]:
    """What the builder answers, and the engine; the folder is where it reads and writes."""
    (folder / MODEL).write_bytes(onnx_bytes)
    (folder / SETTINGS).write_text(json.dumps(settings))
    python = [sys.executable, "-P", "-c"]
    start = [*python, FIX_ADDRESSES] if sys.platform == "linux" else []
    ended = subprocess.run(
        [*start, *python, BUILD, folder],
        env=os.environ | {"PYTHONHASHSEED": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if not (folder / ANSWER).is_file():
        *_, reason = ["nothing printed", *ended.stderr.decode(errors="replace").split("\n")[-2:-1]]
        raise ExportError(
            f"{settings['package']} died while it built the engine (status {ended.returncode}, "
            f"{reason:.200}); if memory was short, try a smaller batch"
        )
    answer = json.loads((folder / ANSWER).read_text())
    if "error" in answer:
        raise ExportError(answer["error"])
    return answer, (folder / ENGINE).read_bytes()
