"""The wheel that users install works where no checkout is near."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

COPIED = ("lipdeploy", "training", "exporters", "samples", "pyproject.toml", "README.md", "LICENSE")
OUTSIDE = ("test_predict.py", "test_certificate.py", "test_onnx.py")


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network from a copy, so that nothing is left in the checkout."""
    copy, target = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in COPIED:
        origin = source / name
        (shutil.copytree if origin.is_dir() else shutil.copy)(origin, copy / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", target, copy], check=True, capture_output=True)
    return next(target.glob("*.whl"))


def test_the_wheel_carries_what_it_needs_and_no_generic_names(wheel: Path, source: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"lipdeploy", f"{wheel.stem[:15]}.dist-info"}
    assert {"lipdeploy/samples/model.onnx", "lipdeploy/py.typed"} <= set(names)
    templates = {f"lipdeploy/report/templates/{name}" for name in ("evaluation.html", "style.css")}
    assert templates <= set(names)
    recipes = {
        f"lipdeploy/training/recipes/{p.name}"
        for p in (source / "training" / "recipes").glob("*.toml")
    }
    assert recipes <= set(names)
    assert len(recipes) >= 6
    assert "lipdeploy/samples/model.pt" not in names


@pytest.mark.slow
def test_the_installed_wheel_passes_the_tests_outside_the_checkout(
    wheel: Path, source: Path, tmp_path: Path
) -> None:
    site, outside = tmp_path / "site", tmp_path / "outside"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    shutil.copytree(source / "tests", outside / "tests")
    shutil.copytree(source / "samples", outside / "samples")
    (outside / "samples" / "__init__.py").unlink()
    shutil.copy(source / "pyproject.toml", outside)
    code = (
        "import sys, pytest, lipdeploy.training as t, lipdeploy.samples as s\n"
        f"assert t.__file__.startswith({str(site)!r}) and s.__file__.startswith({str(site)!r})\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    )
    environment = os.environ | {"PYTHONPATH": str(site), "LIPDEPLOY_SOURCE": str(outside)}
    tests = [f"tests/{name}" for name in OUTSIDE]
    run = subprocess.run(
        [sys.executable, "-c", code, *tests],
        cwd=outside,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
