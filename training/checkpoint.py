"""Model files: a trained network, what is said of it, and a few images to check engines on."""

from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lipdeploy
from lipdeploy.choices import check_class_names
from lipdeploy.errors import ModelError
from lipdeploy.images import PREPROCESSING
from lipdeploy.training.architecture import Architecture, main_weight
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.tensor_file import (
    FORMAT_VERSION,
    DamagedFileError,
    TensorFile,
    one_line,
    read_tensors,
    write_tensors,
)

FORMAT = "lipdeploy-model"


@dataclass(frozen=True)
class ModelCard:
    """What a model file says beside its weights.

    Attributes:
        classes: names of the classes, in the order of the logits.
        dataset: name of the dataset.
        command: the training command.
        epochs: the epoch whose weights these are.
        versions: versions of the packages that trained it.
        options: the training options, all of them; empty in files of older versions.

    Raises:
        ValueError: if a field is of another type, or the class names are no names.
    """

    classes: tuple[str, ...]
    dataset: str
    command: str
    epochs: int
    versions: dict[str, str] = field(default_factory=dict)
    options: dict[str, str | int | float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_class_names(self.classes)
        texts = [self.dataset, self.command, *self.versions, *self.versions.values()]
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.epochs, int):
            raise ValueError("a model card of other types")
        plain: Any = self.options
        if not isinstance(plain, dict) or not all(map(_is_plain, (*plain, *plain.values()))):
            raise ValueError("options of other types")


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def current_versions() -> dict[str, str]:
    """Versions worth keeping with a trained model."""
    return {"lipdeploy": lipdeploy.__version__, "torch": str(torch.__version__)}


@dataclass(frozen=True)
class TrainedModel:
    """What a model file holds.

    Attributes:
        network: in evaluation mode when it was read from a file.
        card: what the file says of it.
        examples: a few real images, shape (count, 3, n, n), 0 ... 255, on which an exported engine
            is checked.
        sha256: hash of the file that it was read from.
    """

    network: LipConvNet
    card: ModelCard
    examples: Tensor
    sha256: str = ""


def save_model(model: TrainedModel, path: Path) -> None:
    """Write `model.pt`: float32 weights (of a skew kernel its independent half), card, shapes."""
    state = {name: value.detach().cpu() for name, value in model.network.state_dict().items()}
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": asdict(model.network.architecture),
        "preprocessing": PREPROCESSING,
        "card": {**asdict(model.card), "classes": list(model.card.classes)},
        # Decoded images and those of the cache lie differently in memory.
        "examples": model.examples.cpu().contiguous(),
        "state": state,
    }
    write_tensors(content, path)


def load_model(path: Path) -> TrainedModel:
    """Read `model.pt`; the network comes back in evaluation mode.

    Raises:
        ModelError: if the file is missing, damaged, foreign, or its weights do not fit its shapes.
    """
    return model_of(read_tensors(path, FORMAT))


def model_of(file: TensorFile) -> TrainedModel:
    """The model in a file that was read; raises ModelError as `load_model`."""
    path, content = file.path, file.content
    try:
        card = ModelCard(**{**content["card"], "classes": tuple(content["card"]["classes"])})
        architecture = Architecture(**content["architecture"])
        network = _build(architecture, card, content["state"])
        examples = _checked_examples(content["examples"], architecture.image_size)
        is_same_preprocessing = bool(content["preprocessing"] == PREPROCESSING)
    except MemoryError:
        raise
    # What is in the file decides which exception it is.
    except Exception as error:
        raise DamagedFileError(
            f"{path}: damaged model file ({one_line(error)}); train again"
        ) from error
    if not is_same_preprocessing:
        raise ModelError(
            f"{path}: trained with another preprocessing than this lipdeploy uses; use the version "
            "that trained it, or train again"
        )
    if not all_finite(network):
        raise ModelError(
            f"{path}: some weights are NaN or infinite; train again with a lower --lr, or take an "
            "earlier model"
        )
    return TrainedModel(network.eval(), card, examples, file.sha256)


def all_finite(network: LipConvNet) -> bool:
    """Whether no weight is NaN or infinite."""
    return all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())


def _build(architecture: Architecture, card: ModelCard, state: dict[str, Tensor]) -> LipConvNet:
    if len(card.classes) != architecture.classes:
        raise ValueError(f"{len(card.classes)} class names for {architecture.classes} classes")
    check_weights_fit(architecture, state)
    network = LipConvNet(architecture, torch.zeros(3))
    network.load_state_dict(state)
    return network


def check_weights_fit(architecture: Architecture, state: dict[str, Tensor]) -> None:
    """Raise ValueError where a network would be much larger than the weights that are there."""
    suffix, _ = main_weight(architecture.layer)
    body = {name: value for name, value in state.items() if name.startswith("body.")}
    held = [value.numel() for name, value in body.items() if name.endswith(f".{suffix}")]
    expected = architecture.main_weights()
    head = sum(value.numel() for name, value in state.items() if name.startswith("head."))
    is_body = list(islice(expected, len(held) + 1)) == held
    if not is_body or head < architecture.features * architecture.classes:
        raise ValueError("the weights do not fit the architecture")


def _checked_examples(examples: Any, size: int) -> Tensor:  # noqa: ANN401
    if not isinstance(examples, Tensor) or examples.shape[1:] != (3, size, size):
        raise ValueError("examples of another shape")
    if not bool(torch.isfinite(examples.float()).all()):
        raise ValueError("examples that are no images")
    return examples.float()
