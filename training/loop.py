"""The training loop: epochs, schedule, checkpoints, resume."""

import csv
import io
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lipdeploy.choices import check_choice
from lipdeploy.errors import TrainingError, UsageError
from lipdeploy.files import make_writable_folder, not_writable, write_atomically
from lipdeploy.training.checkpoint import (
    FORMAT_VERSION,
    ModelCard,
    TrainedModel,
    all_finite,
    current_versions,
    save_model,
    save_tensors,
)
from lipdeploy.training.data import (
    Dataset,
    LabelledImages,
    augment,
    batches,
    channel_mean,
    split_validation,
)
from lipdeploy.training.lipconvnet import Architecture, LipConvNet
from lipdeploy.training.losses import correct, training_loss
from lipdeploy.training.skew import SkewKernel

CHECKPOINT_FORMAT = "lipdeploy-checkpoint"
CHECKPOINT_NAME = "checkpoint.pt"
PREVIOUS_NAME = "checkpoint.previous.pt"
EVALUATION_BATCH = 500
GRADIENT_LIMIT = 5.0
"""Longer gradients are cut to this length. Without it kernels can outrun their norm estimate: 36
images met gradients of 60 and then diverged, where 40 steps on CIFAR-10 had a median of 2.3."""
EXAMPLES = 16
"""Images kept in a model file, to check engines on."""
Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the defaults are the balanced recipe.

    Attributes:
        epochs: passes over the training part.
        batch_size: images a step; None for 256, or less where an epoch would have under 8 steps.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: on skew kernels only.
        offset: u of the loss, an l2 distance in pixels of [0, 1].
        temperature: T of the loss, likewise.
        curvature: weight of the curvature penalty of an MLP head.
        validation: share of the training part that is set aside.
        shift: largest random shift, in pixels.
        seed: of initial weights, split, order and augmentation.
        precision: arithmetic of the body; weights, head and loss are float32.
        device: "cpu", "cuda", ...
    """

    epochs: int = 20
    batch_size: int | None = None
    learning_rate: float = 0.2
    weight_decay: float = 1e-4
    offset: float = 0.4
    temperature: float = 0.25
    curvature: float = 0.0
    validation: float = 0.05
    shift: int = 4
    seed: int = 0
    precision: Precision = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be positive, got {value}")
        if not 0 <= self.validation < 1:
            raise UsageError(f"validation must be a share in [0, 1), got {self.validation}")
        check_choice("--precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class EpochMetrics:
    """One row of metrics.csv."""

    epoch: int
    seconds: float
    learning_rate: float
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float


class Observer(Protocol):
    """Watches a run; the command line shows its progress with it."""

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        """A step was done; loss and accuracy are those of the epoch so far."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch was done and its checkpoint written."""


class Trainer:
    """One training run in a folder with model.pt, checkpoint.pt and metrics.csv.

    The checkpoint before the last one is kept as checkpoint.previous.pt.

    Args:
        dataset: its training part.
        architecture: the shapes of the network.
        options: how to train.
        folder: where the run's files go; made if it is not there.
        command: kept in the model file.

    Raises:
        UsageError: if the options do not fit together.
        TrainingError: if the device cannot be used, or the run cannot be resumed.
    """

    def __init__(
        self,
        dataset: Dataset,
        architecture: Architecture,
        options: TrainingOptions,
        folder: Path,
        command: str,
    ) -> None:
        self.options, self.folder, self.command = options, folder, command
        self.dataset, self.architecture = dataset, architecture
        self.device = _usable_device(options.device)
        torch.manual_seed(options.seed)
        training, validation = split_validation(dataset.images, options.validation, options.seed)
        self.training, self.validation = training.to(self.device), validation.to(self.device)
        self.network = LipConvNet(architecture, channel_mean(training)).to(self.device)
        self.batch_size = options.batch_size or min(256, max(1, len(training) // 8))
        self.steps = max(1, len(training) // self.batch_size)
        self.optimizer = _optimizer(self.network, options)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=options.learning_rate,
            total_steps=self.steps * options.epochs + 1,
            cycle_momentum=False,
        )
        self.finished_epochs = 0
        self.accuracy = 0.0
        self._stop_requested = False

    @property
    def description(self) -> str:
        """Network, images and schedule in one line."""
        parameters = sum(p.numel() for p in self.network.parameters())
        return (
            f"{self.architecture}, {parameters:,} parameters; {len(self.training)} images to train "
            f"on, {len(self.validation)} set aside; {self.steps} steps of {self.batch_size} images "
            f"an epoch; {self.options}"
        )

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return self.finished_epochs >= self.options.epochs

    def stop_after_epoch(self) -> bool:
        """Ask `run` to return after the running epoch; whether that is the first time."""
        is_first, self._stop_requested = not self._stop_requested, True
        return is_first

    @property
    def has_learned(self) -> bool:
        """Whether the last epoch's accuracy on the training images is well above guessing."""
        return self.accuracy > 1.2 / self.architecture.classes

    @property
    def checkpoint_path(self) -> Path:
        """The run's checkpoint."""
        return self.folder / CHECKPOINT_NAME

    @property
    def previous_path(self) -> Path:
        """The checkpoint before the last one."""
        return self.folder / PREVIOUS_NAME

    @property
    def model_path(self) -> Path:
        """The run's model file."""
        return self.folder / "model.pt"

    def run(self, observer: Observer) -> None:
        """Train the epochs that are left, until `stop_after_epoch`.

        A checkpoint and a model are written after each epoch.

        Raises:
            TrainingError: if the loss or a weight is not finite; the last checkpoint stays.
            OutputError: if a file cannot be written; likewise.
        """
        make_writable_folder(self.folder)
        if self.finished_epochs == 0:
            self._forget_rows_after(0)
            self.save()
        while not (self.is_finished or self._stop_requested):
            metrics = self._epoch(observer)
            if not all_finite(self.network):
                raise self._diverged("a weight is not finite")
            self.accuracy = metrics.accuracy
            self.finished_epochs += 1
            self._append(metrics)
            self.save()
            observer.epoch(metrics)

    def _epoch(self, observer: Observer) -> EpochMetrics:
        start, epoch = time.perf_counter(), self.finished_epochs + 1
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch)
        self.network.train()
        self.network.body_dtype = getattr(torch, self.options.precision)
        total_loss, hits, seen = 0.0, 0, 0
        for step, (pixels, labels) in enumerate(self._batches(generator), start=1):
            loss, logits = self._step(pixels, labels)
            total_loss += loss * len(labels)
            hits += correct(logits, labels)
            seen += len(labels)
            observer.step(epoch, step, self.steps, total_loss / seen, hits / seen)
        validation_loss, validation_accuracy = self.evaluate(self.validation)
        return EpochMetrics(
            epoch=epoch,
            seconds=time.perf_counter() - start,
            learning_rate=float(self.scheduler.get_last_lr()[0]),
            loss=total_loss / seen,
            accuracy=hits / seen,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
        )

    def _batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in batches(self.training, self.batch_size, generator):
            yield augment(pixels, self.network.mean, generator, self.options.shift), labels

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        options = self.options
        return training_loss(
            self.network,
            logits,
            labels,
            offset=options.offset,
            temperature=options.temperature,
            curvature=options.curvature,
        )

    def _step(self, pixels: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        self.optimizer.zero_grad()
        logits = self.network(pixels)
        loss = self._loss(logits, labels)
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value}")
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_LIMIT)
        self.optimizer.step()
        self.scheduler.step()
        return value, logits.detach()

    def _diverged(self, what: str) -> TrainingError:
        lower = self.options.learning_rate / 4
        return TrainingError(
            f"{what} in epoch {self.finished_epochs + 1}; {self.checkpoint_path} holds epoch "
            f"{self.finished_epochs}: go on from there with --resume --lr {lower:g}, or with "
            "--resume --precision float32"
        )

    @torch.no_grad()
    def evaluate(self, images: LabelledImages) -> tuple[float, float]:
        """Mean loss and accuracy in float32 on `images`; NaN for none."""
        if not len(images):
            return math.nan, math.nan
        self.network.eval()
        self.network.body_dtype = None
        total, hits = 0.0, 0
        for indices in torch.arange(len(images)).split(EVALUATION_BATCH):
            chosen = images.select(indices)
            logits = self.network(chosen.pixels.float())
            total += self._loss(logits, chosen.labels).item() * len(indices)
            hits += correct(logits, chosen.labels)
        return total / len(images), hits / len(images)

    @property
    def _metrics_path(self) -> Path:
        return self.folder / "metrics.csv"

    def _append(self, metrics: EpochMetrics) -> None:
        row = asdict(metrics)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(row))
        if not self._metrics_path.is_file():
            writer.writeheader()
        writer.writerow(row)
        try:
            with self._metrics_path.open("a", newline="") as stream:
                stream.write(text.getvalue())
        except OSError as error:
            raise not_writable(self._metrics_path, error) from error

    def _forget_rows_after(self, epoch: int) -> None:
        """Drop rows of metrics.csv that a run wrote just before it was killed."""
        if not self._metrics_path.is_file():
            return
        rows = self._metrics_path.read_bytes().splitlines(keepends=True)[: epoch + 1]
        if epoch:
            write_atomically(b"".join(rows), self._metrics_path)
        else:
            self._metrics_path.unlink()

    def save(self) -> None:
        """Write model.pt and checkpoint.pt, each atomically."""
        card = ModelCard(
            classes=self.dataset.classes,
            dataset=self.dataset.name,
            command=self.command,
            epochs=self.finished_epochs,
            versions=current_versions(),
        )
        source = self.validation if len(self.validation) else self.training
        model = TrainedModel(self.network, card, source.pixels[:EXAMPLES].clone())
        save_model(model, self.model_path)
        save_tensors(self._state(), self.checkpoint_path, previous=self.previous_path)

    def _state(self) -> dict[str, Any]:
        return {
            "format": CHECKPOINT_FORMAT,
            "format_version": FORMAT_VERSION,
            "architecture": asdict(self.architecture),
            "options": asdict(self.options),
            "images": len(self.dataset.images),
            "classes": list(self.dataset.classes),
            "command": self.command,
            "finished_epochs": self.finished_epochs,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go back to a state read from a checkpoint.

        Where this run's learning rate is another one, the whole rest of the schedule is scaled.

        Raises:
            TrainingError: if it belongs to another network, dataset or schedule.
        """
        mine = self._state()
        for key in ("architecture", "images", "classes"):
            if state[key] != mine[key]:
                raise TrainingError(
                    f"{self.checkpoint_path} was made with other {key}: {state[key]}, now "
                    f"{mine[key]}; resume with the data of the first call"
                )
        self._forget_rows_after(state["finished_epochs"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.finished_epochs = state["finished_epochs"]
        self._scale_learning_rate(self.options.learning_rate / state["options"]["learning_rate"])

    def _scale_learning_rate(self, factor: float) -> None:
        if factor != 1:
            for group in self.optimizer.param_groups:
                for name in ("lr", "initial_lr", "max_lr", "min_lr"):
                    group[name] *= factor


def _usable_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise TrainingError(
            f"device {name!r} cannot be used ({reason}); try --device cpu"
        ) from error
    return device


def _optimizer(network: LipConvNet, options: TrainingOptions) -> torch.optim.Optimizer:
    kernels = [module for module in network.modules() if isinstance(module, SkewKernel)]
    decayed: list[nn.Parameter] = [p for kernel in kernels for p in kernel.parameters()]
    chosen = {id(parameter) for parameter in decayed}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": rest},
    ]
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, nesterov=True)
