"""The versions that matter in a bug report."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "lipdeploy",
    "numpy",
    "pillow",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
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
