"""Values that several commands read from the command line."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipdeploy.errors import EngineError, ModelError, UsageError
from lipdeploy.images import SUFFIXES
from lipdeploy.locate import find_model
from lipdeploy.report.console import print_note, stages

if TYPE_CHECKING:
    from lipdeploy.artifact import Engine
    from lipdeploy.datasets import LabelledSources
    from lipdeploy.predictor import Predictor

UNUSUAL = 5
"""Radii from here on, l2 in [0, 1] pixels, are more often a forgotten /255 than meant."""


def parse_radius(option: str, text: str) -> Fraction:
    """A radius from "36/255" or "0.14"; raises UsageError for anything else."""
    try:
        over, slash, under = text.partition("/")
        value = Fraction(over) / Fraction(under if slash else 1)
        float(255 * value)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        message = f"{option} {text}: expected a number or a fraction, as 36/255"
        raise UsageError(message) from error
    if value < 0:
        raise UsageError(f"{option} {text}: must not be negative")
    if value >= UNUSUAL:
        print_note(f"{option} {text} is {float(255 * value):g}/255; did you mean {text}/255?")
    return value


def parse_radii(texts: list[str]) -> tuple[Fraction, ...]:
    """Radii in ascending order, each once, from options that may hold several between commas."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    return tuple(sorted({parse_radius("--radii", part) for part in parts}))


def check_no_image(path: Path) -> None:
    """Raise ModelError where an image is given in place of a model."""
    if path.suffix.lower() in SUFFIXES and path.is_file():
        raise ModelError(
            f"{path}: an image, not a model; to classify it type 'lipdeploy predict {path}'"
        )


def check_no_folder(path: Path, *names: str) -> None:
    """Raise ModelError where a folder is given in place of a model, naming the file that is meant.

    Args:
        path: what was given.
        names: of the files that could be meant, the likeliest first.
    """
    if path.is_dir():
        found = [path / name for name in names if (path / name).is_file()]
        meant = f"give {found[0]}" if found else f"give a file, such as {names[0]}"
        raise ModelError(f"{path}: a folder, not a model; {meant}")


def check_no_test_set(models: Sequence[Path]) -> None:
    """Raise an error where a model is a test set: a shell makes many files of a pattern.

    Raises:
        UsageError: if so.
        ModelError: for a folder that is none.
    """
    from lipdeploy.datasets.shards import PARQUET, TAR

    for path in models:
        if path.suffix.lower() in (PARQUET, TAR, ".csv") or (path / "test").is_dir():
            raise UsageError(
                f"{path}: a test set, not a model; the test set comes last: one file, a folder, or "
                "a pattern in quotation marks, as 'test-{000..009}.tar'"
            )
        check_no_folder(path, "model.onnx", "model.pt")


def holds_tensors(path: Path) -> bool:
    """Whether a file is one of torch's (a zip file), whatever its name."""
    try:
        with path.open("rb") as stream:
            return path.suffix == ".pt" or stream.read(4) == b"PK\x03\x04"
    except OSError:
        return path.suffix == ".pt"


def test_images(dataset: str, data: Path) -> "LabelledSources[Any]":
    """The test part of a dataset that has a name, or what `scan_test_set` finds."""
    from lipdeploy.datasets import CIFAR_NAMES, scan_test_set

    if dataset in CIFAR_NAMES:
        from lipdeploy.training.data import cifar_test_images

        return cifar_test_images(dataset, data)
    return scan_test_set(dataset)


def open_predictor(model: Path | None, **arguments: Any) -> "Predictor":  # noqa: ANN401
    """The engine that was given, or the one that is found, which is said; ready to predict.

    Args:
        model: as on the command line.
        arguments: of `Predictor`.

    Raises:
        LipdeployError: if it cannot be used; where nobody has named it, that says how to.
    """
    from lipdeploy.predictor import Predictor, check_arguments

    check_arguments(**arguments)
    path, reason = find_model(model)
    check_no_folder(path, "model.onnx")
    if reason != "given":
        print_note(f"model: {path} ({reason})")
    try:
        return Predictor(path, **arguments)
    except (ModelError, EngineError) as error:
        if reason == "given":
            raise
        raise type(error)(f"{error}, or give another engine with --model FILE") from error


def engine_of(model: Path) -> "Path | Engine":
    """An engine file as it is; a trained model, frozen as `export` would do it."""
    if not holds_tensors(model):
        return model
    from lipdeploy.exporters.options import ExportOptions
    from lipdeploy.exporters.trained import build_engine

    with stages() as stage:
        return build_engine(model, ExportOptions(), stage)
