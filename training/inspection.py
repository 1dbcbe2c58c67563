"""What is in a model file or a checkpoint, in plain values."""

from pathlib import Path
from typing import Any

from torch import Tensor

from lipdeploy.inspection import file_facts
from lipdeploy.training.checkpoint import (
    FORMAT,
    FORMAT_VERSION,
    load_model,
    read_tensors,
)
from lipdeploy.training.loop import CHECKPOINT_FORMAT


def inspect_training_file(path: Path) -> dict[str, Any]:
    """Everything that a model file or a checkpoint says of itself.

    Raises:
        ModelError: if it is neither, or damaged.
    """
    content = read_tensors(path, FORMAT, CHECKPOINT_FORMAT)
    facts = {"path": str(path), **file_facts(path), "format_version": FORMAT_VERSION}
    if content["format"] == CHECKPOINT_FORMAT:
        kept = ("architecture", "options", "classes", "finished_epochs", "command")
        return {**facts, "kind": "checkpoint", **{name: content[name] for name in kept}}
    model = load_model(path)
    state: dict[str, Tensor] = model.network.state_dict()
    return {
        **facts,
        "kind": "trained model",
        "classes": list(model.card.classes),
        "architecture": content["architecture"],
        "preprocessing": content["preprocessing"],
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "weights": {name: list(value.shape) for name, value in state.items()},
        "examples": len(model.examples),
        "source": {name: content["card"][name] for name in ("dataset", "command", "epochs")},
        "versions": model.card.versions,
    }
