"""What is in a model file or a checkpoint, in plain values."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from lipdeploy.images import PREPROCESSING
from lipdeploy.training.checkpoint import FORMAT, model_of
from lipdeploy.training.run_state import CHECKPOINT_FORMAT, RunState
from lipdeploy.training.tensor_file import FORMAT_VERSION, read_tensors


def inspect_training_file(path: Path) -> dict[str, Any]:
    """Everything that a model file or a checkpoint says of itself.

    Raises:
        ModelError: if it is neither, or damaged.
    """
    file = read_tensors(path, FORMAT, CHECKPOINT_FORMAT)
    content = file.content
    facts = {"path": str(path), "bytes": file.size, "sha256": file.sha256}
    facts["format_version"] = FORMAT_VERSION
    if content["format"] == CHECKPOINT_FORMAT:
        state = RunState.of(file)
        return {
            **facts,
            "kind": "checkpoint",
            "architecture": asdict(state.architecture),
            "options": asdict(state.options),
            "classes": list(state.classes),
            "finished_epochs": state.finished_epochs,
            "command": state.command,
        }
    model = model_of(file)
    weights: dict[str, Tensor] = model.network.state_dict()
    return {
        **facts,
        "kind": "trained model",
        "classes": list(model.card.classes),
        "architecture": asdict(model.network.architecture),
        "preprocessing": PREPROCESSING,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "weights": {name: list(value.shape) for name, value in weights.items()},
        "examples": len(model.examples),
        "source": {
            "dataset": model.card.dataset,
            "command": model.card.command,
            "epochs": model.card.epochs,
        },
        "options": model.card.options,
        "versions": model.card.versions,
    }
