"""The environment check, in environments that are broken for real, by what lies on the path."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lipdeploy import doctor, installed, probing
from lipdeploy.doctor import check_huge_pages
from lipdeploy.errors import EngineError
from lipdeploy.installed import Item, check_onnxruntime, check_package
from lipdeploy.probing import ProbeError, ask, output_of
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.versions import installed_version

Cli = Callable[..., tuple[int, str, str]]

STATES = {"ok", "note", "missing", "problem"}

LISTS_CUDA = """
from sys import stderr

class SessionOptions:
    def add_session_config_entry(self, name, value):
        assert name != "session.disable_cpu_ep_fallback" or value == "1"

class GraphOptimizationLevel:
    ORT_DISABLE_ALL = 0

class InferenceSession:
    def __init__(self, data, options, providers):
        if providers != ["CPUExecutionProvider"]:
            stderr.write("Failed to load cuda.so with error: libcublas.so.9: not found\\n")
            raise RuntimeError("fallback to CPU EP has been explicitly disabled")

    def run(self, names, inputs):
        return [2 * inputs["x"]]

def get_available_providers():
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
"""


class Environment:
    """A folder that is searched for packages before all others, and one for programs."""

    def __init__(self, root: Path) -> None:
        self.packages, self.programs = root / "packages", root / "programs"
        self.packages.mkdir()
        self.programs.mkdir()

    def distribution(self, name: str, version: str) -> None:
        """What pip leaves behind of a distribution, without its files."""
        folder = self.packages / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (folder / "METADATA").write_text(text)

    def package(self, name: str, code: str) -> None:
        """A package that runs this code when it is imported."""
        (self.packages / name).mkdir()
        (self.packages / name / "__init__.py").write_text(code)

    def program(self, name: str, code: str) -> None:
        """A shell script; nothing else is on its path."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """One without any program, and with nothing yet before the installed packages."""
    made = Environment(tmp_path)
    monkeypatch.syspath_prepend(made.packages)
    monkeypatch.setenv("PATH", str(made.programs))
    return made


def test_a_whole_environment_has_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Cli
) -> None:
    kernel = tmp_path / "enabled"
    kernel.write_text("[always] madvise never\n")
    monkeypatch.setattr("lipdeploy.doctor.HUGE_PAGES", kernel)
    status, output, errors = run_cli("doctor", "--json")
    (summary,) = [json.loads(line) for line in output.splitlines()]
    assert (status, summary["problems"], errors) == (0, [], "")
    items = {item["name"]: item for item in summary["items"]}
    expected = (
        "python lipdeploy numpy pillow onnx torch torchvision tensorrt tensorrt-rtx-cu13 openvino"
    )
    assert set(expected.split()) < set(items)
    assert {"gpu", "matplotlib", "runs", "cache", "machine", "bundled model"} < set(items)
    assert items["huge pages"]["found"] == "always"
    for name in ("numpy", "pillow", "onnx", "matplotlib", "jinja2", "pyarrow"):
        assert items[name]["state"] == "ok"
        assert items[name]["found"] == installed_version(name)
    assert items["torch"]["found"].startswith(f"{installed_version('torch')}, built for")
    assert items["onnxruntime"]["found"].split()[0] in items["onnxruntime, cpu"]["found"]
    assert items["bundled model"]["found"].endswith("model.onnx, 10 classes")
    for item in items.values():
        assert item["state"] in STATES
        assert (item["advice"] is None) == (item["state"] == "ok"), item


def test_a_problem_is_a_line_with_a_command_and_the_exit_status(
    run_cli: Cli, environment: Environment
) -> None:
    version = installed_version("onnxruntime")
    environment.distribution("onnxruntime-gpu", "1.19.2")
    status, output, errors = run_cli("doctor")
    (line,) = [line for line in output.splitlines() if line.startswith("problem")]
    assert status == 1
    assert line == (
        f"problem  onnxruntime: onnxruntime {version} and onnxruntime-gpu 1.19.2 are both "
        f"installed and overwrite each other's files; {version} is what gets imported -> "
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime"
    )
    assert errors == "to be mended: onnxruntime\n"
    assert {line.split()[0] for line in output.splitlines()} <= STATES


def test_with_a_gpu_the_onnxruntime_for_it_is_kept(environment: Environment) -> None:
    environment.distribution("onnxruntime-gpu", "1.19.2")
    environment.program("nvidia-smi", "exit 0")
    library, on_cpu, on_cuda = check_onnxruntime()
    assert (library.state, on_cpu.state, on_cuda.state) == ("problem", "ok", "note")
    mend = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    assert library.advice == mend
    assert on_cuda.advice == f"{mend} (only with an NVIDIA GPU)"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise ImportError('undefined symbol: OrtGetApi')", "ImportError: undefined symbol"),
        ("", "AttributeError: module 'onnxruntime' has no attribute '__version__'"),
    ],
    ids=["overwritten", "left over"],
)
def test_an_onnxruntime_that_fails_to_load_is_a_problem(
    environment: Environment, code: str, error: str
) -> None:
    environment.package("onnxruntime", code)
    environment.distribution("onnxruntime-gpu", "1.19.2")
    (item,) = check_onnxruntime()
    assert item.state == "problem"
    assert "are both installed and overwrite each other's files; fails to load: " in item.found
    assert error in item.found


def test_an_onnxruntime_of_another_version_than_its_distribution_is_a_problem(
    environment: Environment,
) -> None:
    environment.package("onnxruntime", f"__version__ = '1.20.7'\n{LISTS_CUDA}")
    library, *_ = check_onnxruntime()
    assert library.state == "problem"
    version = installed_version("onnxruntime")
    assert library.found.startswith(f"onnxruntime {version} is installed, but 1.20.7 is imported")
    assert str(environment.packages / "onnxruntime") in library.found
    assert library.advice == "pip uninstall -y onnxruntime && pip install onnxruntime"


@pytest.mark.parametrize(("has_gpu", "state"), [(False, "note"), (True, "problem")])
def test_cuda_that_is_listed_need_not_run(
    environment: Environment, has_gpu: bool, state: str
) -> None:
    version = installed_version("onnxruntime")
    environment.package("onnxruntime", f"__version__ = {version!r}\n{LISTS_CUDA}")
    if has_gpu:
        environment.program("nvidia-smi", "exit 0")
    library, on_cpu, on_cuda = check_onnxruntime()
    assert (library.state, on_cpu.state, on_cuda.state) == ("ok", "ok", state)
    assert on_cuda.found == "listed, but does not run: libcublas.so.9: not found"


@pytest.mark.parametrize(
    ("setting", "tunables", "state", "found"),
    [
        ("[always] madvise never", "", "ok", "always"),
        ("always [madvise] never", "other:glibc.malloc.check=1:glibc.malloc.hugetlb=1", "ok", "as"),
        ("always [madvise] never", "glibc.malloc.hugetlb=2", "note", "only where asked for"),
        ("always [madvise] never", "", "note", "only where asked for"),
        ("always madvise [never]", "glibc.malloc.hugetlb=1", "note", "forbidden by the kernel"),
    ],
)
def test_huge_pages_are_asked_for_and_allowed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    tunables: str,
    state: str,
    found: str,
) -> None:
    kernel = tmp_path / "enabled"
    kernel.write_text(f"{setting}\n")
    monkeypatch.setattr("lipdeploy.doctor.HUGE_PAGES", kernel)
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    (item,) = check_huge_pages()
    assert (item.state, item.found[: len(found)]) == (state, found)
    advice = "export GLIBC_TUNABLES=glibc.malloc.hugetlb=1"
    assert state == "ok" or advice in str(item.advice)
    for library in (("glibc", "2.31"), ("", "")):
        monkeypatch.setattr("platform.libc_ver", lambda found=library: found)
        assert bool(check_huge_pages()) == (found == "always")
    kernel.unlink()
    assert check_huge_pages() == []


def test_without_a_log_the_error_says_why_cuda_does_not_run(environment: Environment) -> None:
    silent = LISTS_CUDA.replace("stderr.write", "len")
    environment.package("onnxruntime", f"__version__ = '1.20.7'\n{silent}")
    on_cuda = check_onnxruntime()[-1]
    error = "EngineError: --device cuda: no usable GPU (fallback to CPU EP has been explicitly"
    assert on_cuda.found.startswith(f"listed, but does not run: {error}")


def test_a_cpu_that_computes_something_else_is_a_problem(environment: Environment) -> None:
    wrong = LISTS_CUDA.replace("2 * inputs", "3 * inputs")
    environment.package("onnxruntime", f"__version__ = '1.20.7'\n{wrong}")
    _, on_cpu, _ = check_onnxruntime()
    assert on_cpu.state == "problem"
    assert "a product of matrices is wrong: [[3.0, 3.0], [3.0, 3.0]]" in on_cpu.found


def torch_of(cuda: str | None, devices: list[str], version: str = "2.99") -> str:
    return (
        f"__version__ = {version!r}\n"
        f"class version:\n    cuda = {cuda!r}\n"
        f"class cuda:\n    devices = {devices!r}\n"
        "    is_available = lambda: bool(cuda.devices)\n"
        "    device_count = lambda: len(cuda.devices)\n"
        "    get_device_name = lambda index: cuda.devices[index]\n"
    )


@pytest.mark.parametrize(
    ("code", "has_gpu", "state", "found", "advice"),
    [
        (torch_of(None, []), False, "ok", "2.99, built for CPUs", None),
        (torch_of(None, []), True, "note", "cannot use the GPU", "pip uninstall -y torch && pip "),
        (torch_of("12.8", []), True, "note", "built for CUDA 12.8, finds no GPU", "nvidia-smi"),
        (torch_of("12.8", ["H100"]), True, "ok", "CUDA 12.8, runs on H100", None),
        (
            torch_of(None, [], "2.9.1"),
            False,
            "problem",
            "2.9.1, lipdeploy needs 2.10 or newer",
            "pip install --upgrade 'torch>=2.10'",
        ),
        (
            "import ctypes; ctypes.string_at(0)",
            False,
            "problem",
            "fails to load: crashed (Segmentation fault) (needed for training and",
            "pip install --force-reinstall --no-deps torch",
        ),
    ],
    ids=["cpu", "cpu beside a gpu", "no gpu", "gpu", "old", "crash"],
)
def test_builds_of_torch(
    environment: Environment,
    code: str,
    has_gpu: bool,
    state: str,
    found: str,
    advice: str | None,
) -> None:
    environment.package("torch", code)
    if has_gpu:
        environment.program("nvidia-smi", "exit 0")
    (item,) = installed.check_torch()
    assert item.state == state
    assert found in item.found
    assert (item.advice or "").find(advice or "") >= 0
    assert (item.advice is None) == (advice is None)


@pytest.mark.parametrize(
    ("torch", "index"),
    [("2.99+cpu", " --index-url https://download.pytorch.org/whl/cpu"), ("2.99+cu128", "")],
)
def test_torchvision_beside_another_build_of_torch_is_a_note(
    environment: Environment, torch: str, index: str
) -> None:
    environment.distribution("torch", torch)
    error = "operator torchvision::nms does not exist"
    environment.package("torchvision", f"raise RuntimeError({error!r})")
    (item,) = installed.check_torchvision()
    assert item.state == "note"
    assert f"RuntimeError: {error} (needed for downloading CIFAR only)" in item.found
    assert item.advice == f"pip install --force-reinstall torch torchvision{index}"


def test_devices_of_openvino_are_told(environment: Environment) -> None:
    code = "class Core:\n    available_devices = ['CPU', 'GPU']\n__version__ = '2099.1'"
    environment.package("openvino", code)
    assert installed.check_openvino() == [Item("openvino", "ok", "2099.1, devices: CPU, GPU")]


def test_what_is_not_installed_is_missing(environment: Environment) -> None:
    package = installed.Package("no-such", "no_such", "no-such-1", "nothing at all")
    found = "not installed; needed for nothing at all"
    assert check_package(package) == [Item("no-such", "missing", found, "pip install no-such-1")]
    needed = installed.Package("no-such", "no_such", "no-such-1")
    assert check_package(needed)[0].state == "problem"
    (environment.packages / "no_such").mkdir()  # as pip leaves it where files were not its own
    assert check_package(package)[0].state == "missing"


def test_a_library_that_hangs_is_given_up(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "LIMIT", 0.5)
    environment.package("tensorrt", "import time\nprint('loading')\ntime.sleep(100)")
    start = time.perf_counter()
    (item,) = check_package(installed.TENSORRT)
    assert time.perf_counter() - start < 10
    assert (item.state, "fails to load: no answer within 0.5 s" in item.found) == ("problem", True)


def test_a_program_whose_child_holds_its_output_is_given_up(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "LIMIT", 0.5)
    sleep = shutil.which("sleep", path=os.defpath)
    environment.program("nvidia-smi", f"{sleep} 20 &\n{sleep} 20")
    start = time.perf_counter()
    (item,) = doctor.check_gpu()
    assert time.perf_counter() - start < 10
    assert (item.state, item.found) == ("note", "nvidia-smi: no answer within 0.5 s")


def test_probes_say_how_they_ended() -> None:
    assert ask("answer['sum'] = 1 + 1; print('noise')") == {"sum": 2}
    for code, message in (
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("import os; print('{}'); os._exit(7)", "ended with status 7"),
        ("import sys, os; print('last words', file=sys.stderr); os._exit(0)", "last words"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ):
        with pytest.raises(ProbeError) as caught:
            ask(code)
        assert str(caught.value) == message
    with pytest.raises(ProbeError, match=r"cannot be started \(No such file"):
        output_of(["/no/such/program"])


@pytest.mark.parametrize(
    ("program", "state", "found"),
    [
        (None, "note", "no nvidia-smi"),
        ("echo 'NVIDIA H100, 81559 MiB, 570.1'", "ok", "NVIDIA H100, 81559 MiB, 570.1 (memory, dr"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "note", "nvidia-smi: NVIDIA-SMI has failed"),
    ],
    ids=["none", "one", "broken driver"],
)
def test_the_gpu_is_what_the_driver_says(
    environment: Environment, program: str | None, state: str, found: str
) -> None:
    if program:
        environment.program("nvidia-smi", program)
    (item,) = doctor.check_gpu()
    assert item.state == state
    assert item.found.startswith(found)


def test_folders_without_room_or_that_are_none_are_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "deep" / "cache"))
    runs, cache = doctor.check_folders()
    assert {runs.state, cache.state} == {"ok"}
    assert cache.found.endswith(f"free for {tmp_path / 'deep' / 'cache' / 'lipdeploy'}")
    assert not (tmp_path / "deep").exists()
    (tmp_path / "runs").write_text("a file")
    monkeypatch.setattr(doctor, "LITTLE_ROOM", 1 << 80)
    runs, cache = doctor.check_folders()
    assert (runs.state, "cannot be written" in runs.found) == ("note", True)
    assert (cache.state, cache.advice) == ("note", "export XDG_CACHE_HOME=FOLDER")


def test_a_bundled_model_that_is_damaged_is_a_problem(
    environment: Environment, source: Path
) -> None:
    copy = environment.packages / "lipdeploy"
    shutil.copytree(source / "lipdeploy", copy)
    shutil.copytree(source / "exporters", copy / "exporters")
    (copy / "samples").mkdir()
    (copy / "samples" / "__init__.py").touch()
    data = (source / "samples" / "model.onnx").read_bytes()
    (copy / "samples" / "model.onnx").write_bytes(data[:-1000])
    (item,) = doctor.check_bundled_model()
    assert (item.state, "ModelError: " in item.found) == ("problem", True)
    assert str(copy / "samples" / "model.onnx") in item.found


# What other commands say of two distributions


def test_without_cuda_two_distributions_are_the_reason(
    environment: Environment, source: Path
) -> None:
    data = (source / "samples" / "model.onnx").read_bytes()
    with pytest.raises(EngineError, match=r"has no CUDA; use --device cpu, or pip uninst"):
        OnnxRuntime(data, "cuda")
    environment.distribution("onnxruntime-gpu", "1.19.2")
    message = (
        r"^--device cuda: onnxruntime \S+ and onnxruntime-gpu 1.19.2 are both installed and "
        r"overwrite each other's files; use --device cpu, or pip uninstall -y onnxruntime "
        r"onnxruntime-gpu && "
        r"pip install onnxruntime-gpu$"
    )
    with pytest.raises(EngineError, match=message):
        OnnxRuntime(data, "cuda")


@pytest.mark.parametrize(
    ("code", "device", "message"),
    [
        ("raise ImportError('no symbol')", "auto", "ONNX Runtime cannot be imported: onnxruntime "),
        ("", "cpu", "ONNX Runtime cannot be imported: onnxruntime "),
        (f"__version__ = '1.20.7'\n{LISTS_CUDA}", "cuda", "no usable GPU (fallback to CPU EP"),
    ],
    ids=["overwritten", "left over", "no library of CUDA"],
)
def test_commands_name_two_distributions_where_they_fail(
    environment: Environment, source: Path, code: str, device: str, message: str
) -> None:
    environment.package("onnxruntime", code)
    environment.distribution("onnxruntime-gpu", "1.19.2")
    samples = source / "samples"
    command = ["predict", samples / "cat-0000.jpg", "--model", samples / "model.onnx"]
    finished = subprocess.run(
        [sys.executable, "-m", "lipdeploy", *command, "--device", device],
        env=os.environ | {"PYTHONPATH": str(environment.packages)},
        capture_output=True,
        text=True,
        check=False,
    )
    kept = "onnxruntime-gpu" if device == "cuda" else "onnxruntime"
    mend = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install {kept}\n"
    assert (finished.returncode, finished.stdout) == (1, "")
    error = finished.stderr.splitlines()[-1] + "\n"
    assert error.startswith("Error: ")
    assert message in error
    assert "onnxruntime-gpu 1.19.2 are both installed and overwrite each other's files" in error
    assert error.endswith(mend)
    assert "Traceback" not in finished.stderr


def test_one_distribution_that_is_broken_is_told_how_to_mend(
    environment: Environment, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.package("onnxruntime", "raise ImportError('no symbol')")
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    message = r"cannot be imported \(no symbol\); pip uninstall -y onnxruntime && pip install onnx"
    with pytest.raises(EngineError, match=message):
        OnnxRuntime(b"", "cpu")
