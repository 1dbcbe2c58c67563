"""Model files and checkpoints: tensors and plain values only, written atomically."""

import io
import warnings
import zipfile
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lipdeploy
from lipdeploy.errors import ModelError
from lipdeploy.files import write_atomically
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


def save_tensors(content: dict[str, Any], path: Path, *, previous: Path | None = None) -> None:
    """Write with torch.save, whose every record carries a CRC-32; see `write_atomically`.

    Raises:
        OutputError: if the file cannot be written.
    """
    stream = io.BytesIO()
    torch.save(content, stream)
    write_atomically(stream.getvalue(), path, previous=previous)


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
    save_tensors(content, path)


def read_tensors(path: Path, *formats: str) -> dict[str, Any]:
    """Read a file of tensors and plain values that says it has one of these formats.

    Nothing in it is executed, and what it unpacks to is no larger than the file.

    Raises:
        ModelError: if it is missing, damaged, holds code, or is of another format.
    """
    expected = " or ".join(formats)
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "no such file"
        raise ModelError(f"{path}: {kind}; expected a {expected} file, as 'lipdeploy train' writes")
    try:
        content = _unpack(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    # The unpickler and the zip reader raise many kinds of errors; all mean a file that is no model.
    except Exception as error:
        raise ModelError(
            f"{path}: not a {expected} file, or a damaged one ({_one_line(error)}); "
            "take it from a backup, or train again"
        ) from error
    found = content.get("format", "foreign")
    if found not in formats:
        raise ModelError(f"{path}: a {found} file; expected a {expected} file")
    if content.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{path}: format version {content.get('format_version')}, this lipdeploy reads "
            f"{FORMAT_VERSION}; use the version of lipdeploy that wrote it"
        )
    return content


def _unpack(data: bytes) -> dict[str, Any]:
    _check_records(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is in a file that is refused anyway
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    _check_sizes(loaded, len(data))
    return loaded if isinstance(loaded, dict) else {}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def _check_records(data: bytes) -> None:
    """Check the CRC-32 of every record; a compressed one could be a bomb, torch writes none."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("compressed records")
        if sum(record.file_size for record in records) > len(data):
            raise ValueError("records larger than the file")
        if damaged := archive.testzip():
            raise ValueError(f"checksum of {damaged}")


def _check_sizes(content: object, limit: int) -> None:
    """Refuse tensors that claim more elements than the file has bytes (strides of zero)."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor) and (
            value.layout != torch.strided or value.numel() > limit or value.device.type != "cpu"
        ):
            raise ValueError("a tensor is larger than the file")
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def load_model(path: Path) -> TrainedModel:
    """Read `model.pt`; the network comes back in evaluation mode.

    Raises:
        ModelError: if the file is missing, damaged, foreign, or its weights do not fit its shapes.
    """
    content = read_tensors(path, FORMAT)
    try:
        card = ModelCard(**{**content["card"], "classes": tuple(content["card"]["classes"])})
        architecture = Architecture(**content["architecture"])
        network = _build(architecture, card, content["state"])
        examples, preprocessing = content["examples"], content["preprocessing"]
        _check_examples(examples, architecture.image_size)
    # What is in the file decides which exception it is.
    except Exception as error:
        raise ModelError(f"{path}: damaged model file ({_one_line(error)}); train again") from error
    if preprocessing != PREPROCESSING:
        raise ModelError(
            f"{path}: trained with another preprocessing than this lipdeploy uses ({preprocessing}"
            "); use the version that trained it, or train again"
        )
    if not all_finite(network):
        raise ModelError(
            f"{path}: some weights are NaN or infinite; train again with a lower --lr, or take an "
            "earlier model"
        )
    return TrainedModel(network.eval(), card, examples)


def all_finite(network: LipConvNet) -> bool:
    """Whether no weight is NaN or infinite."""
    return all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())


def _build(architecture: Architecture, card: ModelCard, state: dict[str, Tensor]) -> LipConvNet:
    """The network, built only where the file holds as many weights as its shapes ask for."""
    if len(card.classes) != architecture.classes:
        raise ValueError(f"{len(card.classes)} class names for {architecture.classes} classes")
    if not all(isinstance(name, str) for name in card.classes):
        raise ValueError("class names must be text")
    held = [len(value) for name, value in state.items() if name.endswith(".centre")]
    expected = (c * (c - 1) // 2 for c in architecture.kernel_channels())
    if list(islice(expected, len(held) + 1)) != held:
        raise ValueError("the weights do not fit the architecture")
    network = LipConvNet(architecture, torch.zeros(3))
    network.load_state_dict(state)
    return network


def _check_examples(examples: Tensor, size: int) -> None:
    if examples.shape[1:] != (3, size, size) or not bool(torch.isfinite(examples.float()).all()):
        raise ValueError(f"examples of shape {tuple(examples.shape)}")
