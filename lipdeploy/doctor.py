"""What of the environment works, and what to do about the rest: `lipdeploy doctor`."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import lipdeploy
from lipdeploy import installed
from lipdeploy.files import cache_folder
from lipdeploy.installed import Item, check_package
from lipdeploy.probing import ProbeError, ask, output_of
from lipdeploy.versions import has_nvidia_tools

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Who gets huge pages of memory, by the kernel."""

ASK_FOR_HUGE_PAGES, CAN_ASK = "glibc.malloc.hugetlb", (2, 35)
"""What asks for them, in the variable GLIBC_TUNABLES, and the first glibc that knows it."""

LITTLE_ROOM = 1 << 30
"""Bytes; less free space is worth a note."""

BUNDLED_PROBE = """
from lipdeploy.exporters.onnx_file import read_onnx
from lipdeploy.locate import bundled_model

engine = read_onnx(bundled_model())
answer["found"] = f"{engine.name}, {len(engine.manifest.classes)} classes"
"""


def examine() -> Iterator[Item]:
    """All items, in a fixed order, found side by side."""
    checks: tuple[Callable[[], list[Item]], ...] = (
        check_python,
        check_lipdeploy,
        partial(check_package, installed.NUMPY),
        partial(check_package, installed.PILLOW),
        partial(check_package, installed.ONNX),
        installed.check_onnxruntime,
        installed.check_torch,
        installed.check_torchvision,
        partial(check_package, installed.TENSORRT),
        partial(check_package, installed.TENSORRT_RTX),
        installed.check_openvino,
        check_gpu,
        partial(check_package, installed.MATPLOTLIB),
        partial(check_package, installed.JINJA),
        partial(check_package, installed.PYARROW),
        check_folders,
        check_machine,
        check_huge_pages,
        check_bundled_model,
    )
    with ThreadPoolExecutor(max_workers=max(2, _cores())) as pool:
        for items in pool.map(lambda check: check(), checks):
            yield from items


def check_python() -> list[Item]:
    """The interpreter and the system."""
    found = f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"
    return [Item("python", "ok", f"{found}, {platform.system()} {platform.machine()}")]


def check_lipdeploy() -> list[Item]:
    """What of lipdeploy runs here, and how it was installed."""
    folder = Path(lipdeploy.__file__).parent
    try:
        metadata = distribution("lipdeploy")
    except PackageNotFoundError:
        found = f"runs from {folder}, but is not installed"
        return [Item("lipdeploy", "problem", found, f"pip install {folder.parent}")]
    origin = json.loads(metadata.read_text("direct_url.json") or "{}")
    is_editable = origin.get("dir_info", {}).get("editable", False)
    how = "an editable install of" if is_editable else "installed in"
    return [Item("lipdeploy", "ok", f"{metadata.version}, {how} {folder}")]


def check_gpu() -> list[Item]:
    """GPUs and driver, as the driver's own command says."""
    if not has_nvidia_tools():
        return [Item("gpu", "note", "no nvidia-smi", "with an NVIDIA GPU, install its driver")]
    query = "--query-gpu=name,memory.total,driver_version"
    try:
        lines = output_of(["nvidia-smi", query, "--format=csv,noheader"]).splitlines()
    except ProbeError as error:
        advice = "install the driver again, or restart the machine"
        return [Item("gpu", "note", f"nvidia-smi: {error}", advice)]
    return [Item("gpu", "ok", f"{line.strip()} (memory, driver)") for line in lines]


def check_folders() -> list[Item]:
    """Room where results and caches are written."""
    return [
        _folder("runs", Path("runs"), "lipdeploy train --out FOLDER writes elsewhere"),
        _folder("cache", cache_folder(), "export XDG_CACHE_HOME=FOLDER"),
    ]


def _folder(name: str, folder: Path, advice: str) -> Item:
    try:
        folder = folder.absolute()
        # It need not be there yet.
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Item(name, "note", f"{folder}: cannot be read ({error.strerror})", advice)
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return Item(name, "note", f"{folder}: cannot be written", advice)
    found = f"{free / 2**30:.1f} GiB free for {folder}"
    return Item(name, "ok", found) if free >= LITTLE_ROOM else Item(name, "note", found, advice)


def check_machine() -> list[Item]:
    """Cores and memory that this process may use."""
    memory = _memory()
    size = f", {memory / 2**30:.1f} GiB of memory" if memory else ""
    return [Item("machine", "ok", f"{_cores()} cores{size}")]


def check_huge_pages() -> list[Item]:
    """Whether weights may lie in huge pages of memory; nothing where nobody can ask for them."""
    try:
        setting = HUGE_PAGES.read_text()
    except OSError:
        return []
    if "[always]" in setting:
        return [Item("huge pages", "ok", "always")]
    library, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".") if part.isdecimal())
    if library != "glibc" or numbers < CAN_ASK:
        return []
    advice = f"export GLIBC_TUNABLES={ASK_FOR_HUGE_PAGES}=1 may read weights faster (single images)"
    if "[madvise]" not in setting:
        allow = f"echo madvise | sudo tee {HUGE_PAGES}"
        return [Item("huge pages", "note", "forbidden by the kernel", f"{allow}; then {advice}")]
    if _tunables().get(ASK_FOR_HUGE_PAGES) == "1":
        return [Item("huge pages", "ok", "asked for")]
    return [Item("huge pages", "note", "only where asked for", advice)]


def _tunables() -> dict[str, str]:
    """The settings of glibc that the environment holds, by name."""
    entries = os.environ.get("GLIBC_TUNABLES", "").split(":")
    return {name: value for name, _, value in (entry.partition("=") for entry in entries)}


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _memory() -> int | None:
    """Bytes that the machine has, or its container is allowed; None where nobody says."""
    if sys.platform == "win32":
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def check_bundled_model() -> list[Item]:
    """Whether the engine that comes with lipdeploy can be read."""
    try:
        return [Item("bundled model", "ok", ask(BUNDLED_PROBE)["found"])]
    except ProbeError as error:
        advice = "install lipdeploy again; until then give --model FILE"
        return [Item("bundled model", "problem", f"cannot be read: {error}", advice)]
