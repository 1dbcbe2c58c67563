"""The versions that matter in a bug report."""

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")
"""Distributions that bring files of the same names: of two, the later one has written over the
other, and removing either takes the files of both. pip says nothing about that."""

REINSTALL_TORCH = "pip uninstall -y torch && pip install torch"
"""What puts the build for NVIDIA GPUs in the place of one for CPUs."""

PACKAGES = (
    "lipdeploy",
    "numpy",
    "pillow",
    "onnx",
    *ONNXRUNTIMES,
    "torch",
    "torchvision",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-python",
    "openvino",
)


def installed_version(package: str) -> str | None:
    """Version of an installed distribution, without importing it; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Name and version of everything that a result can depend on, lipdeploy first."""
    found = {name: installed_version(name) for name in PACKAGES}
    installed = {name: value for name, value in found.items() if value is not None}
    return installed | {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "byte order": sys.byteorder,
    }


def installed_onnxruntimes() -> dict[str, str]:
    """Name and version of the distributions of ONNX Runtime; more than one is a mistake."""
    found = {name: installed_version(name) for name in ONNXRUNTIMES}
    return {name: value for name, value in found.items() if value is not None}


def onnxruntime_clash() -> str | None:
    """That two distributions of ONNX Runtime are installed, in words; None where they are not."""
    installed = installed_onnxruntimes()
    if len(installed) < 2:
        return None
    names = " and ".join(f"{name} {value}" for name, value in installed.items())
    return f"{names} are both installed and overwrite each other's files"


def reinstall_onnxruntime(*, for_gpu: bool) -> str:
    """The command that leaves a single, whole ONNX Runtime, whatever is installed."""
    wanted = "onnxruntime-gpu" if for_gpu else "onnxruntime"
    names = " ".join(installed_onnxruntimes() or [wanted])
    return f"pip uninstall -y {names} && pip install {wanted}"


def has_nvidia_tools() -> bool:
    """Whether a driver of NVIDIA has left its command here."""
    return shutil.which("nvidia-smi") is not None
