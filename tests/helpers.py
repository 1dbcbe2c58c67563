"""Networks, inputs and folders that several tests make."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lipdeploy.exporters.freeze import layer_shapes
from lipdeploy.exporters.plan import Choice, FormChoice, LayerShape, Target, make_plan
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.checkpoint import ModelCard, TrainedModel, save_model
from lipdeploy.training.data import Dataset
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.loop import Trainer
from lipdeploy.training.metrics import EpochMetrics
from lipdeploy.training.options import TrainingOptions


def make_network(
    seed: int = 0, image_size: int = 8, bias_scale: float = 0.3, **shape: object
) -> LipConvNet:
    """A small random network with biases that are not zero, in evaluation mode."""
    torch.manual_seed(seed)
    defaults: dict[str, object] = {"classes": 3, "width": 4}
    architecture = Architecture(image_size=image_size, **(defaults | shape))
    network = LipConvNet(architecture, torch.tensor([120.0, 110.0, 100.0]))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, bias_scale)
    return network.eval()


def plan_of(network: LipConvNet, form: FormChoice, how: str = "") -> tuple[Choice, ...]:
    """Every layer in a form, its blocks multiplied as the rest of `str(Choice)` says, if it can."""

    def is_other(_shape: LayerShape, choice: Choice, _target: Target) -> float:
        return float(str(choice).partition(" ")[2] != how)

    plan = make_plan(layer_shapes(network), form, Target(), is_other)
    assert not how or any(str(choice).endswith(how) for choice in plan)
    return plan


def random_pixels(count: int, image_size: int, seed: int = 0) -> np.ndarray:
    """Integer pixels as float64, shape (count, 3, n, n)."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 3, image_size, image_size)).astype(np.float64)


def write_image_folder(root: Path, side: int, count: int = 12) -> Path:
    """Write train/<class>/* and test/<class>/*."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, level in (("bright", 180), ("dark", 60)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.normal(level, 20, (side, side, 3)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02d}.png")
    return root


def own_test_set(root: Path, samples: Path) -> Path:
    """The bundled images as `root`/test/<class>/*."""
    for path in samples.glob("*.jpg"):
        folder = root / "test" / path.stem.split("-")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    return root


def ignore(*_: object, **__: object) -> None:
    """Hear nothing: progress and notes."""


class Silent:
    """Watches a run and says nothing."""

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None: ...

    def epoch(self, metrics: EpochMetrics) -> None: ...


def make_trainer(
    dataset: Dataset, folder: Path, head: str = "lln", padding: str = "circular", **options: object
) -> Trainer:
    """A run of four epochs of four steps on two classes of 8 x 8 pixels."""
    architecture = Architecture(8, 2, width=4, head=head, padding=padding)
    defaults = {"epochs": 4, "batch_size": 6, "validation": 0.2, "learning_rate": 0.05}
    chosen = TrainingOptions(**(defaults | options))
    return Trainer(dataset, architecture, chosen, folder, "lipdeploy train tiny")


def assert_one_line(status: int, output: str, errors: str, expected: int, message: str) -> None:
    """What a command that was refused gave: nothing but one line, which says why."""
    assert (status, output) == (expected, ""), errors
    assert errors.startswith("Error: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert re.search(message, errors), errors


def save_model_file(folder: Path, **shape: object) -> Path:
    """An untrained model.pt of three classes, with four images of noise."""
    network = make_network(**shape)
    card = ModelCard(tuple(f"class {i}" for i in range(3)), "none", "test", 0)
    examples = torch.from_numpy(random_pixels(4, network.architecture.image_size)).float()
    save_model(TrainedModel(network, card, examples), folder / "model.pt")
    return folder / "model.pt"


class NotedPaths(list[Path]):
    """Paths that note which of them were taken.

    Attributes:
        taken: those, in order.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        super().__init__(paths)
        self.taken: list[Path] = []

    def __iter__(self) -> Iterator[Path]:
        for path in super().__iter__():
            self.taken.append(path)
            yield path
