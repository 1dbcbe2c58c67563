"""Packages that lipdeploy uses: whether they are there, load and run, and what to do if not.

They are imported, and devices opened, in processes of their own: there they may hang or crash.
"""

import importlib.util
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires
from typing import Any, Literal

from lipdeploy.probing import ProbeError, ask
from lipdeploy.versions import (
    REINSTALL_TORCH,
    has_nvidia_tools,
    installed_onnxruntimes,
    installed_version,
    onnxruntime_clash,
    reinstall_onnxruntime,
)

State = Literal["ok", "note", "missing", "problem"]
"""All is well; worth knowing; not installed, and not always needed; broken."""

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Item:
    """What was found of one part of the environment.

    Attributes:
        name: the part.
        state: how it is.
        found: what there is, in one line.
        advice: what to do, as a command where there is one; None where all is well.
    """

    name: str
    state: State
    found: str
    advice: str | None = None


@dataclass(frozen=True)
class Package:
    """A package that lipdeploy uses.

    Attributes:
        name: of its distribution.
        module: what is imported.
        install: what pip has to be given for it.
        needed_for: what does not work without it; None for everything.
        probe: what to ask it, in Python, when it is imported as `module`.
        if_broken: the state where it is there and fails.
    """

    name: str
    module: str
    install: str
    needed_for: str | None = None
    probe: str = ""
    if_broken: State = "problem"


NUMPY = Package("numpy", "numpy", "numpy")
PILLOW = Package("pillow", "PIL", "pillow")
ONNX = Package("onnx", "onnx", "onnx")
TORCH = Package(
    "torch",
    "torch",
    "'lipdeploy[train]'",
    "training and for reading a model.pt",
    """
answer["cuda"] = module.version.cuda
usable = module.cuda.device_count() if module.cuda.is_available() else 0
answer["devices"] = [module.cuda.get_device_name(index) for index in range(usable)]
""",
)
TORCHVISION = Package(
    "torchvision",
    "torchvision",
    "'lipdeploy[cifar]'",
    "downloading CIFAR only",
    if_broken="note",
)
TENSORRT = Package("tensorrt", "tensorrt", "'lipdeploy[trt]'", "engines of TensorRT only")
TENSORRT_RTX = Package(
    "tensorrt-rtx-cu13",
    "tensorrt_rtx",
    "'lipdeploy[trt-rtx]'",
    "engines of TensorRT for RTX only",
)
OPENVINO = Package(
    "openvino",
    "openvino",
    "'lipdeploy[openvino]'",
    "engines of OpenVINO only",
    "answer['devices'] = list(module.Core().available_devices)",
)
MATPLOTLIB = Package("matplotlib", "matplotlib", "'lipdeploy[plot]'", "evaluate --curve only")
JINJA = Package("jinja2", "jinja2", "'lipdeploy[report]'", "evaluate --report only")
PYARROW = Package("pyarrow", "pyarrow", "'lipdeploy[parquet]'", "Parquet files of evaluate only")

ONNXRUNTIME_PROBE = """
import onnxruntime
answer["version"] = onnxruntime.__version__
answer["folder"] = onnxruntime.__path__[0]
answer["providers"] = onnxruntime.get_available_providers()
"""

PRODUCT_PROBE = '''
import numpy
from onnx import parser
from lipdeploy.runtimes.onnx import OnnxRuntime

product = parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    product (float[2, 2] x) => (float[2, 2] y) { y = MatMul (x, x) }
""")
runtime = OnnxRuntime(product.SerializeToString(), DEVICE)
(found,) = runtime.outputs(["y"], {"x": numpy.ones((2, 2), numpy.float32)})
if not (found == 2).all():
    raise ValueError(f"a product of matrices is wrong: {found.tolist()}")
answer["engine"] = runtime.description
'''


def check_package(package: Package) -> list[Item]:
    """Whether a package is there, can be imported, and is recent enough."""
    facts = _facts(package)
    if isinstance(facts, Item):
        return [facts]
    return [Item(package.name, "ok", facts["version"])]


def _facts(package: Package) -> dict[str, Any] | Item:
    """What a package answers, or the item that says why it does not."""
    version, needed = installed_version(package.name), package.needed_for
    if version is None and not _is_there(package.module):
        state: State = "problem" if needed is None else "missing"
        found = f"not installed; needed for {needed or 'everything'}"
        return Item(package.name, state, found, f"pip install {package.install}")
    question = f"import {package.module} as module\nanswer['version'] = module.__version__\n"
    try:
        facts = ask(question + package.probe)
    except ProbeError as error:
        use = f" (needed for {needed})" if needed else ""
        found = f"{version or 'of unknown version'}, fails to load: {error}{use}"
        mend = f"pip install --force-reinstall --no-deps {package.name}"
        return Item(package.name, package.if_broken, found, mend)
    return _too_old(package.name, str(facts["version"])) or facts


def _is_there(module: str) -> bool:
    """Whether a module can be found, and is no empty folder that an uninstalled one has left."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def _too_old(name: str, version: str) -> Item | None:
    """The problem that a version is older than lipdeploy requires, or None."""
    least = _least_version(name)
    if least is None or _release(version) >= _release(least):
        return None
    found = f"{version}, lipdeploy needs {least} or newer"
    return Item(name, "problem", found, f"pip install --upgrade '{name}>={least}'")


def _least_version(name: str) -> str | None:
    """The oldest version of a distribution that lipdeploy's own requirements allow."""
    with suppress(PackageNotFoundError):
        for line in requires("lipdeploy") or []:
            if found := re.match(rf"{re.escape(name)}>=([\d.]+)", line):
                return found[1]
    return None


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without suffixes and zeros at the end."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = re.sub(r"(\.0+)+$", "", found[0]) if found else "0"
    return tuple(map(int, numbers.split(".")))


def check_onnxruntime() -> list[Item]:
    """Which ONNX Runtime is here really, and on which devices it runs."""
    name, installed = "onnxruntime", installed_onnxruntimes()
    for_gpu = has_nvidia_tools()
    if not installed and not _is_there("onnxruntime"):
        extra = "gpu" if for_gpu else "onnx"
        found = "not installed; needed for predict, evaluate and export"
        return [Item(name, "problem", found, f"pip install 'lipdeploy[{extra}]'")]
    try:
        facts = ask(ONNXRUNTIME_PROBE)
    except ProbeError as error:
        found = onnxruntime_clash() or ", ".join(f"{n} {v}" for n, v in installed.items())
        found = f"{found or 'no distribution'}; fails to load: {error}"
        return [Item(name, "problem", found, reinstall_onnxruntime(for_gpu=for_gpu))]
    return [_library(installed, facts), _cpu(), _cuda(facts["providers"])]


def _library(installed: dict[str, str], facts: dict[str, Any]) -> Item:
    """Whether what is imported is what one distribution, and only one, has brought."""
    name, version, folder = "onnxruntime", facts["version"], facts["folder"]
    mend = reinstall_onnxruntime(for_gpu=has_nvidia_tools())
    if clash := onnxruntime_clash():
        return Item(name, "problem", f"{clash}; {version} is what gets imported", mend)
    if not installed:
        return Item(name, "note", f"{version} in {folder}, which pip does not know", mend)
    ((distributed, its_version),) = installed.items()
    if _release(its_version) != _release(version):
        found = f"{distributed} {its_version} is installed, but {version} is imported ({folder})"
        return Item(name, "problem", found, mend)
    return _too_old(distributed, version) or Item(name, "ok", f"{version} ({distributed})")


def _cpu() -> Item:
    name = "onnxruntime, cpu"
    try:
        return Item(name, "ok", f"runs: {_engine_on('cpu')}")
    except ProbeError as error:
        mend = reinstall_onnxruntime(for_gpu=has_nvidia_tools())
        return Item(name, "problem", f"does not run: {error}", mend)


def _cuda(providers: list[str]) -> Item:
    """Being listed does not mean that it runs."""
    name, mend = "onnxruntime, cuda", reinstall_onnxruntime(for_gpu=True)
    if "CUDAExecutionProvider" not in providers:
        found = f"not in this ONNX Runtime ({', '.join(providers)})"
        return Item(name, "note", found, f"{mend} (only with an NVIDIA GPU)")
    try:
        return Item(name, "ok", f"runs: {_engine_on('cuda')}")
    except ProbeError as error:
        # Which library it could not load, it says in its log only.
        missing = re.search(r"with error: (.+)", error.log)
        found = f"listed, but does not run: {missing[1].strip() if missing else error}"
        state: State = "problem" if has_nvidia_tools() else "note"
        advice = "check the driver with nvidia-smi, and that CUDA and cuDNN are on the library path"
        return Item(name, state, found, advice)


def _engine_on(device: Literal["cpu", "cuda"]) -> str:
    """What computed a small product on a device; raises ProbeError where nothing can."""
    return str(ask(f"DEVICE = {device!r}\n{PRODUCT_PROBE}")["engine"])


def check_torch() -> list[Item]:
    """PyTorch, whether it is built for CUDA, and the GPUs that it can use."""
    facts = _facts(TORCH)
    if isinstance(facts, Item):
        return [facts]
    build = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built for CPUs"
    found, devices = f"{facts['version']}, {build}", facts["devices"]
    if devices:
        return [Item("torch", "ok", f"{found}, runs on {', '.join(devices)}")]
    if facts["cuda"]:
        advice = "with an NVIDIA GPU, type nvidia-smi: is its driver new enough for this CUDA?"
        return [Item("torch", "note", f"{found}, finds no GPU", advice)]
    if has_nvidia_tools():
        return [Item("torch", "note", f"{found}, cannot use the GPU", REINSTALL_TORCH)]
    return [Item("torch", "ok", found)]


def check_torchvision() -> list[Item]:
    """Its operators are compiled for one build of torch, and fail to load beside another."""
    (item,) = check_package(TORCHVISION)
    if item.state == "note":
        is_for_cpus = "+cpu" in (installed_version("torch") or "")
        index = f" --index-url {CPU_INDEX}" if is_for_cpus else ""
        item = replace(item, advice=f"pip install --force-reinstall torch torchvision{index}")
    return [item]


def check_openvino() -> list[Item]:
    """OpenVINO and its devices."""
    facts = _facts(OPENVINO)
    if isinstance(facts, Item):
        return [facts]
    return [Item("openvino", "ok", f"{facts['version']}, devices: {', '.join(facts['devices'])}")]
