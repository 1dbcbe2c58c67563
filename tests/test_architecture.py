"""The dependency rules and the packaging, as the design fixes them."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TRUSTED = (
    "frozen operators spectral taylor tiled heads mlp_head mlp_margins bounds arithmetic rounding "
    "directed built engine_error certificate structure artifact verification fourier errors choices"
)
PYARROW = {"datasets.parquet", "datasets.row_group", "report.images"}
TRUSTED_MODULES = {f"lipdeploy.{name}" for name in TRUSTED.split()}
FOLDERS = {"lipdeploy": "lipdeploy", "training": "lipdeploy.training"}
FOLDERS |= {"exporters": "lipdeploy.exporters", "samples": "lipdeploy.samples"}


def modules(source: Path) -> dict[str, Path]:
    """All modules of the project by dotted name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (source / folder).rglob("*.py"):
            parts = [package, *path.relative_to(source / folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Everything that a file imports, at any depth, outside of TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_every_module_is_seen(source: Path) -> None:
    assert set(modules(source)) >= TRUSTED_MODULES


@pytest.mark.parametrize("name", sorted(TRUSTED_MODULES))
def test_the_trusted_core_needs_numpy_and_the_standard_library_only(
    source: Path, name: str
) -> None:
    path = modules(source)[name]
    assert tops(path) <= {"numpy", "lipdeploy"} | set(sys.stdlib_module_names)
    own = {n for n in imports(path) if n.startswith("lipdeploy") and n in modules(source)}
    assert own <= TRUSTED_MODULES | {"lipdeploy"}


def test_torch_stays_where_training_is(source: Path) -> None:
    allowed = ("lipdeploy.training", "lipdeploy.runtimes.torch", "lipdeploy.attacks")
    others = {
        "lipdeploy.exporters.freeze",
        "lipdeploy.exporters.exponential",
        "lipdeploy.torch_cuda",
    }
    for name, path in modules(source).items():
        if {"torch", "torchvision"} & tops(path):
            assert name.startswith(allowed) or name in others, name


def test_engines_stay_in_their_own_files(source: Path) -> None:
    engines = {"onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "openvino"}
    homes = {
        "lipdeploy.exporters.onnx",
        "lipdeploy.exporters.onnx_file",
        "lipdeploy.exporters.onnx_cost",
        "lipdeploy.exporters.onnx_graph",
        "lipdeploy.exporters.onnx_layer",
        "lipdeploy.exporters.onnx_probe",
        "lipdeploy.exporters.onnx_shapes",
        "lipdeploy.exporters.openvino",
        "lipdeploy.exporters.verify",
        "lipdeploy.runtimes.cuda",
        "lipdeploy.runtimes.onnx",
        "lipdeploy.runtimes.openvino",
        "lipdeploy.runtimes.torch_graph",
        "lipdeploy.runtimes.torch_nodes",
        "lipdeploy.runtimes.tensorrt",
    }
    users = {name for name, path in modules(source).items() if engines & tops(path)}
    assert users == homes
    libraries = {
        "onnx": {"onnxruntime"},
        "tensorrt": {"tensorrt", "tensorrt_rtx"},
        "cuda": {"cuda"},
    }
    for name, expected in libraries.items():
        assert engines & tops(modules(source)[f"lipdeploy.runtimes.{name}"]) == expected


def test_training_knows_no_exporter_and_no_runtime(source: Path) -> None:
    for name, path in modules(source).items():
        if name.startswith("lipdeploy.training"):
            forbidden = ("lipdeploy.exporters", "lipdeploy.runtimes", "lipdeploy.predictor")
            assert not [n for n in imports(path) if n.startswith(forbidden)], name
        if name.startswith(("lipdeploy.runtimes", "lipdeploy.attacks")):
            assert not [n for n in imports(path) if n.startswith("lipdeploy.training")], name


def test_nothing_imports_the_command_line_and_only_it_draws(source: Path) -> None:
    for name, path in modules(source).items():
        if not name.startswith(("lipdeploy.cli", "lipdeploy.__main__")):
            assert not [n for n in imports(path) if n.startswith("lipdeploy.cli")], name
        if {"typer", "rich"} & tops(path):
            assert name.startswith(("lipdeploy.cli", "lipdeploy.report")), name
        if "matplotlib" in tops(path):
            assert name in {"lipdeploy.plots", "lipdeploy.attack_plots"}
        if "pyarrow" in tops(path):
            assert name.removeprefix("lipdeploy.") in PYARROW, name


def test_predicting_imports_no_torch() -> None:
    modules = "lipdeploy.cli, lipdeploy.predictor, lipdeploy.runtimes.torch"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_folder_with_an_init_file_is_a_declared_package(source: Path) -> None:
    config = tomllib.loads((source / "pyproject.toml").read_text())
    declared = set(config["tool"]["setuptools"]["packages"])
    folders = {
        ".".join(
            [FOLDERS[path.relative_to(source).parts[0]], *path.relative_to(source).parts[1:-1]]
        )
        for folder in FOLDERS
        for path in (source / folder).rglob("__init__.py")
    }
    assert folders == declared


@pytest.mark.parametrize("folder", ["training", "exporters"])
def test_generic_names_are_refused(
    source: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(source)
    with pytest.raises(ImportError, match=f"import lipdeploy.{folder}"):
        importlib.import_module(folder)
