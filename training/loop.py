"""The training loop: epochs, their checkpoints, resume."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import islice, tee
from pathlib import Path

import torch
from torch import Tensor

from lipdeploy.errors import LipdeployError, TrainingError, UsageError
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.checkpoint import (
    ModelCard,
    TrainedModel,
    all_finite,
    current_versions,
)
from lipdeploy.training.data import Batches, Dataset, Images
from lipdeploy.training.device import usable_device
from lipdeploy.training.distributed import ALONE, Processes
from lipdeploy.training.learner import Learner
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.memory_errors import advice_for, explaining_memory_errors
from lipdeploy.training.metrics import EpochMetrics
from lipdeploy.training.observers import Observer
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.run_folder import RunFolder
from lipdeploy.training.run_state import RunState
from lipdeploy.training.sampling import (
    Share,
    augment,
    channel_mean,
    epoch_parts,
    split_validation,
)
from lipdeploy.training.selection import ModelChoice
from lipdeploy.training.tally import Tally
from lipdeploy.training.validation import Certify, certified_columns, evaluated

EXAMPLES = 16
"""Images kept in a model file, to check engines on."""


class Trainer:
    """One training run in a folder; see `RunFolder` for its files.

    Args:
        dataset: its training part.
        architecture: the shapes of the network.
        options: how to train.
        folder: where the run's files go; made if it is not there.
        command: kept in the model file.
        processes: who train together; only the main one writes files and certifies.
        is_compiled: whether to compile the network's training passes.

    Attributes:
        certify: how validation images are certified (`lipdeploy.training.validation`); None for not
            at all.

    Raises:
        UsageError: if the options do not fit together.
        TrainingError: if the device cannot be used, or the images do not fit on it.
    """

    def __init__(
        self,
        dataset: Dataset,
        architecture: Architecture,
        options: TrainingOptions,
        folder: Path,
        command: str,
        processes: Processes = ALONE,
        *,
        is_compiled: bool = False,
    ) -> None:
        self.options, self.folder, self.command = options, folder, command
        self.files = RunFolder(folder)
        self.dataset, self.architecture, self.processes = dataset, architecture, processes
        training, validation = processes.together(self._divide)
        mean = channel_mean(training, processes)
        self.network = processes.together(lambda: self._place(training, validation, mean))
        steps = self.steps * options.epochs
        self.learner = Learner(self.network, options, steps, processes, is_compiled=is_compiled)
        self.certify: Certify | None = None
        self.finished_epochs = 0
        self.accuracy = 0.0
        self._stop_requested = False

    def _divide(self) -> tuple[Images, Images]:
        """Set validation images aside, and divide the others into steps."""
        options, images = self.options, self.dataset.images
        self.device = usable_device(self.processes.device(options.device))
        training, validation = split_validation(images, options.validation, options.seed)
        if not len(training):
            raise UsageError(f"--validation {options.validation} leaves no image to train on")
        self.choice = ModelChoice(options, len(validation))
        batch = options.batch_for(len(training))
        self.share = Share(batch, options.accumulate, self.processes)
        self.steps = len(training) // self.share.batch
        source = validation if len(validation) else training
        self.examples = source.select(torch.arange(min(EXAMPLES, len(source)))).loaded().pixels
        return training, validation

    def _place(self, training: Images, validation: Images, mean: Tensor) -> LipConvNet:
        """Put the images and a new network on the device."""
        with explaining_memory_errors(f"images and network on {self.device}", "give --stream"):
            self.training, self.validation = training.to(self.device), validation.to(self.device)
            torch.manual_seed(self.options.seed)
            return LipConvNet(self.architecture, mean).to(self.device)

    @property
    def description(self) -> str:
        """Network, images and schedule in one line."""
        network, options, share = self.architecture, self.options, self.share
        parameters = sum(p.numel() for p in self.network.parameters())
        several = f" in each of {self.processes.size} processes" if self.processes.size > 1 else ""
        parts = f", {share.part_size} at a time{several}" if share.part_size < share.batch else ""
        images = "1 image" if share.batch == 1 else f"{share.batch} images"
        return (
            f"LipConvNet-{network.depth}, width {network.width}, {network.head} head, "
            f"{parameters:,} parameters, {network.image_size} pixels; {len(self.training)} images "
            f"of {network.classes} classes to train on, {len(self.validation)} set aside; "
            f"{options.epochs} epochs of {self.steps} steps of {images}{parts}; "
            f"{options.precision} on {options.device}"
        )

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return self.finished_epochs >= self.options.epochs

    def stop_after_epoch(self) -> bool:
        """Ask `run` to return after the running epoch; whether that is the first time.

        One process that is asked is enough.
        """
        is_first, self._stop_requested = not self._stop_requested, True
        return is_first

    @property
    def has_learned(self) -> bool:
        """Whether the last epoch's accuracy on the training images is well above guessing."""
        return self.accuracy > 1.2 / self.architecture.classes

    @property
    def checkpoint_path(self) -> Path:
        """The run's checkpoint."""
        return self.files.checkpoint_path

    @property
    def previous_path(self) -> Path:
        """The checkpoint before the last one."""
        return self.files.previous_path

    @property
    def model_path(self) -> Path:
        """The run's model file."""
        return self.files.model_path

    def run(self, observer: Observer) -> None:
        """Train the epochs that are left, until `stop_after_epoch`.

        A checkpoint and a model are written after each epoch.

        Raises:
            TrainingError: if the loss or a weight is not finite, or memory runs out; the last
                checkpoint stays.
            OutputError: if a file cannot be written; likewise.
        """
        with ExitStack() as stack:
            self.processes.together(lambda: self._begin(stack))
            while not (self.is_finished or self.processes.any(self._stop_requested)):
                observer.epoch(self._epoch_and_save(observer))

    def _begin(self, stack: ExitStack) -> None:
        if not self.processes.is_main:
            return
        stack.enter_context(self.files.opened(self.finished_epochs))
        if self.finished_epochs == 0:
            self.save(0)
        elif not self.files.has_model(self.choice.epoch or self.finished_epochs):
            self._save_model(self.finished_epochs)

    def _epoch_and_save(self, observer: Observer) -> EpochMetrics:
        what = f"{self.share.part_size} images at a time"
        with explaining_memory_errors(what, advice_for(self.share)):
            metrics = self._epoch(observer)
        if not all_finite(self.network):
            raise self._diverged("a weight is not finite")
        states = self.network.state_dict(), self.learner.average.state_dict()
        self.processes.check_same(tensor for state in states for tensor in state.values())
        self.choice.offer(metrics, self.learner.average.network)
        self.processes.together(lambda: self._keep(metrics))
        self.accuracy, self.finished_epochs = metrics.accuracy, metrics.epoch
        return metrics

    def _keep(self, metrics: EpochMetrics) -> None:
        if self.processes.is_main:
            self.files.metrics.append(metrics)
            self.save(metrics.epoch)

    def _epoch(self, observer: Observer) -> EpochMetrics:
        start, epoch = time.perf_counter(), self.finished_epochs + 1
        self.network.train()
        self.network.body_dtype = getattr(torch, self.options.precision)
        tally = Tally()
        with closing(self._parts(epoch)) as parts:
            for step in range(1, self.steps + 1):
                tally += self._step(islice(parts, self.options.accumulate))
                observer.step(epoch, step, self.steps, tally.mean_loss, tally.accuracy)
        validation_loss, validation_accuracy = self.evaluate(self.validation)
        seconds = time.perf_counter() - start
        certified = self.processes.together(lambda: self._certified(epoch))
        metrics = EpochMetrics(
            epoch=epoch,
            seconds=seconds,
            learning_rate=self.learner.learning_rate,
            loss=tally.mean_loss,
            accuracy=tally.accuracy,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            **certified,
        )
        # Only the main process certifies; all choose by what it found.
        return self.processes.from_main(metrics)

    def _certified(self, epoch: int) -> dict[str, float]:
        certify = self.certify if self.processes.is_main else None
        network = self.learner.average.network.eval()
        return certified_columns(certify, network, self.validation, epoch, self.options)

    def rehearse(self, observer: Observer) -> None:
        """Train one epoch and write nothing, to see what it takes."""
        self._epoch(observer)

    def _parts(self, epoch: int) -> Batches:
        """What this process computes in an epoch, moved at random."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch)
        drawn = epoch_parts(len(self.training), self.share, self.options.shift, generator)
        # Streamed images are asked for some time before they are needed.
        parts, coming = tee(drawn)
        with closing(self.training.read(part.indices for part in coming)) as images:
            for part, (pixels, labels) in zip(parts, images, strict=True):
                yield augment(pixels, self.network.mean, part.moves), labels

    def _step(self, parts: Iterator[tuple[Tensor, Tensor]]) -> Tally:
        tally = self.learner.gradient(parts)
        if not math.isfinite(tally.loss):
            raise self._diverged(f"the loss became {tally.mean_loss}")
        self.learner.step()
        return tally

    def _diverged(self, what: str) -> LipdeployError:
        lower = self.options.learning_rate / 4
        return self.processes.told_once(
            f"{what} in epoch {self.finished_epochs + 1}; {self.checkpoint_path} holds epoch "
            f"{self.finished_epochs}: go on from there with --resume --lr {lower:g}, or with "
            "--resume --precision float32"
        )

    def evaluate(self, images: Images) -> tuple[float, float]:
        """Mean loss and accuracy, of averaged weights, in float32 on `images`; NaN for none.

        The processes share the images; all get the same answer.
        """
        tally = evaluated(self.learner.average.network, images, self.share, self.options)
        return tally.mean_loss, tally.accuracy

    def save(self, epoch: int) -> None:
        """Write model.pt and checkpoint.pt after `epoch`, each atomically.

        The very first checkpoint comes before its model, so that a run that holds anything can be
        resumed; later the model comes first, so that it is never behind the checkpoint.
        """
        if epoch == 0:
            self.files.save_state(self._state(epoch))
        self._save_model(epoch)
        if epoch > 0:
            self.files.save_state(self._state(epoch))

    def _save_model(self, epoch: int) -> None:
        epoch, network = self.choice.chosen(epoch, self.learner.average.network)
        card = ModelCard(
            classes=self.dataset.classes,
            dataset=self.dataset.name,
            command=self.command,
            epochs=epoch,
            versions=current_versions(),
            options=asdict(self.options),
        )
        self.files.save_model(TrainedModel(network, card, self.examples))

    def _state(self, epoch: int) -> RunState:
        return RunState(
            architecture=self.architecture,
            options=self.options,
            classes=self.dataset.classes,
            data_sha256=self.dataset.images.sha256,
            command=self.command,
            finished_epochs=epoch,
            network=self.network.state_dict(),
            optimizer=self.learner.optimizer.state_dict(),
            scheduler=self.learner.scheduler.state_dict(),
            average=self.learner.average.state_dict(),
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
        state.check_fits(self.architecture, self.dataset, self.checkpoint_path)
        try:
            self.learner.load(state)
            self.choice.load_state_dict(state.best, self.network)
        # torch raises many kinds for states that are not its own.
        except Exception as error:
            raise TrainingError(
                f"{self.checkpoint_path} holds a state that does not fit ({error!r}); start anew"
            ) from error
        self.files.go_on_from(seen=seen, is_last=is_last)
        self.finished_epochs = state.finished_epochs
