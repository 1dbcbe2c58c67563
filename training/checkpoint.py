"""Model files and checkpoints: tensors and plain values only, written atomically."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lipdeploy
from lipdeploy.errors import ModelError
from lipdeploy.images import PREPROCESSING
from lipdeploy.training.lipconvnet import Architecture, LipConvNet

FORMAT = "lipdeploy-model"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ModelCard:
    """What a model file says beside its weights.

    Attributes:
        classes: names of the classes, in the order of the logits.
        dataset: name of the dataset.
        command: the training command.
        epochs: epochs trained.
        versions: versions of the packages that trained it.
    """

    classes: tuple[str, ...]
    dataset: str
    command: str
    epochs: int
    versions: dict[str, str] = field(default_factory=dict)


def current_versions() -> dict[str, str]:
    """Versions worth keeping with a trained model."""
    return {"lipdeploy": lipdeploy.__version__, "torch": str(torch.__version__)}


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Write with torch.save to a file beside `path`, flush it to disk, rename it over `path`."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class TrainedModel:
    """What a model file holds.

    Attributes:
        network: in evaluation mode when it was read from a file.
        card: what the file says of it.
        examples: a few real images, shape (count, 3, n, n), 0 ... 255, on which an exported engine
            is checked.
    """

    network: LipConvNet
    card: ModelCard
    examples: Tensor


def save_model(model: TrainedModel, path: Path) -> None:
    """Write `model.pt`: float32 weights (of a skew kernel its independent half), card, shapes."""
    state = {name: value.detach().cpu() for name, value in model.network.state_dict().items()}
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": asdict(model.network.architecture),
        "preprocessing": PREPROCESSING,
        "card": {**asdict(model.card), "classes": list(model.card.classes)},
        "examples": model.examples.cpu(),
        "state": state,
    }
    save_atomically(content, path)


def read_tensors(path: Path, expected_format: str) -> dict[str, Any]:
    """Read a file of tensors and plain values that says it has `expected_format`.

    Raises:
        ModelError: if it is missing, damaged, holds code, or is of another format.
    """
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "no such file"
        raise ModelError(f"{path}: {kind}; expected a {expected_format} file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # The unpickler and the zip reader raise many kinds of errors; all mean a file that is no model.
    except Exception as error:
        raise ModelError(f"{path}: not a {expected_format} file, or a damaged one") from error
    content: dict[str, Any] = loaded if isinstance(loaded, dict) else {}
    found = content.get("format", "foreign")
    if found != expected_format:
        raise ModelError(f"{path}: a {found} file; expected a {expected_format} file")
    if content.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{path}: format version {content.get('format_version')}, this lipdeploy reads "
            f"{FORMAT_VERSION}; use the version of lipdeploy that wrote it"
        )
    return content


def load_model(path: Path) -> TrainedModel:
    """Read `model.pt`; the network comes back in evaluation mode.

    Raises:
        ModelError: if the file is missing, damaged, foreign, or its weights do not fit its shapes.
    """
    content = read_tensors(path, FORMAT)
    try:
        card = ModelCard(**{**content["card"], "classes": tuple(content["card"]["classes"])})
        architecture = Architecture(**content["architecture"])
        network = LipConvNet(architecture, torch.zeros(3))
        network.load_state_dict(content["state"])
        examples, preprocessing = content["examples"], content["preprocessing"]
    except (KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"{path}: damaged model file ({error})") from error
    if len(card.classes) != architecture.classes:
        raise ModelError(
            f"{path}: {len(card.classes)} class names for {architecture.classes} classes"
        )
    if preprocessing != PREPROCESSING:
        raise ModelError(f"{path}: trained with another preprocessing, {preprocessing}")
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise ModelError(f"{path}: some weights are NaN or infinite; train again")
    return TrainedModel(network.eval(), card, examples)
