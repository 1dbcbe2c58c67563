"""Which model and which images a command means."""

import os
from collections.abc import Iterable, Mapping
from glob import has_magic, iglob
from importlib.resources import files
from pathlib import Path

from lipdeploy.built import SUFFIXES as SUFFIXES_OF_BUILT
from lipdeploy.built import record_beside
from lipdeploy.errors import ModelError
from lipdeploy.images import SUFFIXES

MODEL_VARIABLE = "LIPDEPLOY_MODEL"


def bundled_model() -> Path:
    """The engine that comes with the package."""
    return Path(str(files("lipdeploy.samples") / "model.onnx"))


def find_model(
    given: Path | None, environment: Mapping[str, str] = os.environ, runs: Path = Path("runs")
) -> tuple[Path, str]:
    """The engine to use, and why this one.

    In this order: the one given, $LIPDEPLOY_MODEL, the newest engine under ./runs, the bundled one.

    Raises:
        ModelError: if there is none.
    """
    if given is not None:
        return given, "given"
    if environment.get(MODEL_VARIABLE):
        return Path(environment[MODEL_VARIABLE]), f"from ${MODEL_VARIABLE}"
    engine = _newest(path for path in runs.rglob("*") if _is_engine(path))
    trained = _newest(runs.rglob("model.pt"))
    hint = ""
    if trained and (engine is None or trained.stat().st_mtime_ns > engine.stat().st_mtime_ns):
        hint = f"; {trained} is newer and not exported yet"
    if engine:
        return engine, f"newest under {runs}{hint}"
    bundled = bundled_model()
    if bundled.is_file():
        return bundled, f"bundled{hint}"
    raise ModelError(
        "no model: give --model FILE, or make one with 'lipdeploy train' and 'lipdeploy export'"
    )


def _is_engine(path: Path) -> bool:
    """Whether a file is what a user would name; the ONNX engine of a family is not."""
    if path.suffix == ".onnx":
        return Path(path.stem).suffix not in SUFFIXES_OF_BUILT
    return path.suffix in SUFFIXES_OF_BUILT and record_beside(path).is_file()


def _newest(paths: Iterable[Path]) -> Path | None:
    found = [path for path in paths if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def find_images(arguments: Iterable[str]) -> list[Path]:
    """The files that paths, directories (searched in depth) and glob patterns mean, in order.

    Of a directory or a pattern only pictures count, by suffix. What has none, or does not exist, is
    kept as it is, so that its own error can be told and the others still run.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            matches = sorted(path.rglob("*"))
        elif has_magic(argument) and not path.exists():
            matches = sorted(Path(match) for match in iglob(argument, recursive=True))  # noqa: PTH207
        else:
            found.append(path)
            continue
        pictures = [p for p in matches if p.suffix.lower() in SUFFIXES and p.is_file()]
        found += pictures or [path]
    return found
