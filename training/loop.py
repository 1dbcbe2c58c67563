"""The training loop: epochs, schedule, checkpoints, resume."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lipdeploy.errors import ModelError, TrainingError
from lipdeploy.files import (
    file_sha256,
    make_writable_folder,
    only_writer,
    remove_partial_files,
)
from lipdeploy.training.averaging import WeightAverage
from lipdeploy.training.checkpoint import (
    ModelCard,
    TrainedModel,
    all_finite,
    current_versions,
    load_model,
    save_model,
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
from lipdeploy.training.metrics import EpochMetrics, MetricsTable
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.run_state import RunState
from lipdeploy.training.selection import ModelChoice
from lipdeploy.training.skew import SkewKernel
from lipdeploy.training.validation import Certify, certified_columns

CHECKPOINT_NAME = "checkpoint.pt"
PREVIOUS_NAME = "checkpoint.previous.pt"
MODEL_NAME = "model.pt"
METRICS_NAME = "metrics.csv"
RUN_FILES = (CHECKPOINT_NAME, PREVIOUS_NAME, MODEL_NAME, METRICS_NAME)
EVALUATION_BATCH = 500
GRADIENT_LIMIT = 5.0
"""Longer gradients are cut to this length. Without it kernels can outrun their norm estimate: 36
images met gradients of 60 and then diverged, where 40 steps on CIFAR-10 had a median of 2.3."""
EXAMPLES = 16
"""Images kept in a model file, to check engines on."""


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

    Attributes:
        certify: how validation images are certified (`lipdeploy.training.validation`); None for not
            at all.

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
        self.batch_size = options.batch_for(len(training))
        self.steps = max(1, len(training) // self.batch_size)
        self.optimizer = _optimizer(self.network, options)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=options.learning_rate,
            total_steps=self.steps * options.epochs + 1,
            cycle_momentum=False,
        )
        self.average = WeightAverage(self.network, options.ema)
        self.choice = ModelChoice(options, len(validation))
        self.certify: Certify | None = None
        self.metrics = MetricsTable(folder / METRICS_NAME)
        self.finished_epochs = 0
        self.accuracy = 0.0
        self._stop_requested = False
        self._is_last_checkpoint_whole = True
        self._seen: str | None = None

    @property
    def description(self) -> str:
        """Network, images and schedule in one line."""
        network, options = self.architecture, self.options
        parameters = sum(p.numel() for p in self.network.parameters())
        return (
            f"LipConvNet-{network.depth}, width {network.width}, {network.head} head, "
            f"{parameters:,} parameters, {network.image_size} pixels; {len(self.training)} images "
            f"of {network.classes} classes to train on, {len(self.validation)} set aside; "
            f"{options.epochs} epochs of {self.steps} steps of {self.batch_size} images; "
            f"{options.precision} on {options.device}"
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
        return self.folder / MODEL_NAME

    def run(self, observer: Observer) -> None:
        """Train the epochs that are left, until `stop_after_epoch`.

        A checkpoint and a model are written after each epoch.

        Raises:
            TrainingError: if the loss or a weight is not finite; the last checkpoint stays.
            OutputError: if a file cannot be written; likewise.
        """
        make_writable_folder(self.folder)
        with only_writer(self.folder, "training into", "--out"):
            self._check_unchanged()
            remove_partial_files(self.folder, RUN_FILES)
            self.metrics.forget_after(self.finished_epochs)
            if self.finished_epochs == 0:
                self.save(0)
            elif not self._has_model():
                self._save_model(self.finished_epochs)
            while not (self.is_finished or self._stop_requested):
                observer.epoch(self._epoch_and_save(observer))

    def _has_model(self) -> bool:
        """Whether model.pt is whole and no older than the run; people lose and overwrite files."""
        expected, _ = self.choice.chosen(self.finished_epochs, self.average.network)
        try:
            return load_model(self.model_path).card.epochs >= expected
        except ModelError:
            return False

    def _check_unchanged(self) -> None:
        """Raise TrainingError where another process trained into the folder in the meantime."""
        if file_sha256(self.checkpoint_path) != self._seen:
            raise TrainingError(
                f"{self.checkpoint_path} was written by another process in the meantime; go on "
                "from there with --resume, or choose another --out"
            )

    def _epoch_and_save(self, observer: Observer) -> EpochMetrics:
        metrics = self._epoch(observer)
        if not all_finite(self.network):
            raise self._diverged("a weight is not finite")
        self.metrics.append(metrics)
        self.choice.offer(metrics, self.average.network)
        self.save(metrics.epoch)
        self.accuracy, self.finished_epochs = metrics.accuracy, metrics.epoch
        return metrics

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
            **self._certified(epoch),
        )

    def _certified(self, epoch: int) -> dict[str, float]:
        network = self.average.network.eval()
        return certified_columns(self.certify, network, self.validation, epoch, self.options)

    def rehearse(self, observer: Observer) -> None:
        """Train one epoch and write nothing, to see what it takes."""
        self._epoch(observer)

    def _batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in batches(self.training, self.batch_size, generator):
            yield augment(pixels, self.network.mean, generator, self.options.shift), labels

    def _step(self, pixels: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        self.optimizer.zero_grad()
        logits = self.network(pixels)
        loss = training_loss(self.network, logits, labels, self.options)
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value}")
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_LIMIT)
        self.optimizer.step()
        self.average.update()
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
        """Mean loss and accuracy, of averaged weights, in float32 on `images`; NaN for none."""
        if not len(images):
            return math.nan, math.nan
        network = self.average.network.eval()
        network.body_dtype = None
        total, hits = 0.0, 0
        for indices in torch.arange(len(images)).split(EVALUATION_BATCH):
            chosen = images.select(indices)
            logits = network(chosen.pixels.float())
            loss = training_loss(network, logits, chosen.labels, self.options)
            total += loss.item() * len(indices)
            hits += correct(logits, chosen.labels)
        return total / len(images), hits / len(images)

    def save(self, epoch: int) -> None:
        """Write model.pt and checkpoint.pt after `epoch`, each atomically.

        The very first checkpoint comes before its model, so that a run that holds anything can be
        resumed; later the model comes first, so that it is never behind the checkpoint.
        """
        if epoch == 0:
            self._save_state(epoch)
        self._save_model(epoch)
        if epoch > 0:
            self._save_state(epoch)

    def _save_model(self, epoch: int) -> None:
        epoch, network = self.choice.chosen(epoch, self.average.network)
        card = ModelCard(
            classes=self.dataset.classes,
            dataset=self.dataset.name,
            command=self.command,
            epochs=epoch,
            versions=current_versions(),
            options=asdict(self.options),
        )
        source = self.validation if len(self.validation) else self.training
        examples = source.pixels[:EXAMPLES].clone()
        save_model(TrainedModel(network, card, examples), self.model_path)

    def _save_state(self, epoch: int) -> None:
        # A damaged checkpoint must not take the place of the good one before it.
        previous = self.previous_path if self._is_last_checkpoint_whole else None
        self._state(epoch).save(self.checkpoint_path, previous=previous)
        self._is_last_checkpoint_whole = True
        self._seen = file_sha256(self.checkpoint_path)

    def _state(self, epoch: int) -> RunState:
        return RunState(
            architecture=self.architecture,
            options=self.options,
            classes=self.dataset.classes,
            data_sha256=self.dataset.images.sha256,
            command=self.command,
            finished_epochs=epoch,
            network=self.network.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            average=self.average.state_dict(),
            best=self.choice.state_dict(),
        )

    def resume(self, state: RunState, *, seen: str | None, is_last: bool = True) -> None:
        """Go back to the state in a checkpoint.

        Where this run's learning rate is another one, the whole rest of the schedule is scaled.

        Args:
            state: what the checkpoint holds.
            seen: hash of checkpoint.pt when it was read; None where it was missing.
            is_last: whether it is the last one; else the last is damaged and will be replaced.

        Raises:
            TrainingError: if it belongs to another network or to other images.
        """
        for name, what in (("architecture", "network"), ("classes", "classes")):
            old, new = getattr(state, name), getattr(self, name, self.dataset.classes)
            if old != new:
                raise self._does_not_fit(f"other {what}: {old}, now {new}")
        if state.data_sha256 != self.dataset.images.sha256:
            raise self._does_not_fit("other images")
        try:
            self.network.load_state_dict(state.network)
            self.optimizer.load_state_dict(state.optimizer)
            self.scheduler.load_state_dict(state.scheduler)
            self.average.load_state_dict(state.average)
            self.choice.load_state_dict(state.best, self.network)
            self._scale_learning_rate(self.options.learning_rate / state.options.learning_rate)
        # torch raises many kinds for states that are not its own.
        except Exception as error:
            raise TrainingError(
                f"{self.checkpoint_path} holds a state that does not fit ({error!r}); start anew"
            ) from error
        self._seen = seen
        self.finished_epochs, self._is_last_checkpoint_whole = state.finished_epochs, is_last

    def _does_not_fit(self, what: str) -> TrainingError:
        return TrainingError(
            f"{self.checkpoint_path} was made with {what}; resume with the data of the first call, "
            "or train anew with another --out"
        )

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
