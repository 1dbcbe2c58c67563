"""What a run would take, without running it: layers, steps, a measured step, memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lipdeploy.datasets import CIFAR_NAMES, scan_folder
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.data import (
    Dataset,
    LabelledImages,
    natural_size,
)
from lipdeploy.training.device import chosen_device
from lipdeploy.training.distributed import ALONE
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.loading import decoded_bytes, is_too_large
from lipdeploy.training.loop import Trainer
from lipdeploy.training.metrics import EpochMetrics
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.sampling import split_validation
from lipdeploy.training.selection import ModelChoice
from lipdeploy.training.session import TrainingRequest, check_dataset

CIFAR_IMAGES = 50_000
CIFAR_BYTES = CIFAR_IMAGES * 3 * 32**2
STEPS = 4
"""That are measured; the first warms up."""


@dataclass(frozen=True)
class RehearsedLayer:
    """One module of the network.

    Attributes:
        name: of the module.
        kind: its class.
        shape: of what it returns for one image.
        parameters: how many it learns.
        macs: multiplications an image of its forward pass in training; what is done once a step is
            shared by the images of a batch.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Rehearsal:
    """What a run would take.

    Attributes:
        network: in evaluation mode, with weights like those that it would begin with.
        layers: its modules, first to last.
        options: how it would be trained.
        images: to train on, and set aside.
        batch_size: images a step.
        steps: of an epoch.
        step_seconds: median time of a step, forward and backward, on this machine now.
        memory: bytes, by what they are for.
    """

    network: LipConvNet
    layers: tuple[RehearsedLayer, ...]
    options: TrainingOptions
    images: tuple[int, int]
    batch_size: int
    steps: int
    step_seconds: float
    memory: dict[str, int]


@dataclass(frozen=True)
class _Images:
    """What is known of a dataset without reading it.

    Attributes:
        classes: names.
        labels: shape (count,).
        size: side of the network's input.
        held: bytes of all images in memory; 0 where they are streamed.
    """

    classes: tuple[str, ...]
    labels: Tensor
    size: int
    held: int


def rehearse(request: TrainingRequest) -> Rehearsal:
    """Build the network and take a few steps on noise; nothing is downloaded or written.

    It is about a run of one process.

    Raises:
        LipdeployError: if the data or the options are not usable.
    """
    options = TrainingOptions(**request.options, device=chosen_device(request.device))
    images = _described(request)
    architecture = Architecture(
        image_size=images.size, classes=len(images.classes), **request.network
    )
    hollow = LabelledImages(torch.empty(len(images.labels), 0), images.labels)
    training, validation = split_validation(hollow, options.validation, options.seed)
    ModelChoice(options, len(validation))  # refuses what a run would refuse
    batch = options.batch_for(len(training))
    measured = replace(options, epochs=1, batch_size=batch, validation=0.0)
    measured = replace(measured, keep="last", certify_every=0)
    trainer = Trainer(_noise(images, batch), architecture, measured, request.out, request.command)
    layers = _layers(trainer.network, trainer.share.part_size, trainer.device)
    gauge = _Gauge(trainer.network)
    with gauge.watching():
        trainer.rehearse(gauge)
    network = trainer.network.eval()
    copies = 3 + (options.ema > 0) + (options.keep == "best")
    weights = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    return Rehearsal(
        network=network,
        layers=layers,
        options=options,
        images=(len(training), len(validation)),
        batch_size=batch,
        steps=max(1, len(training) // batch),
        step_seconds=gauge.seconds,
        memory={
            "weights, gradients, momentum, averages": copies * weights,
            "kept for the backward pass": gauge.largest,
            "images": images.held,
        },
    )


def _described(request: TrainingRequest) -> _Images:
    check_dataset(request, request.image_size)
    if request.dataset in CIFAR_NAMES:
        count = int(request.dataset.removeprefix("cifar"))
        names = tuple(str(index) for index in range(count))
        return _Images(names, torch.arange(CIFAR_IMAGES) % count, 32, CIFAR_BYTES)
    folder = scan_folder(Path(request.dataset), "train")
    size = request.image_size or natural_size(folder.sources)
    is_streamed = request.stream or is_too_large(folder, size, ALONE, _say_nothing)
    held = 0 if is_streamed else decoded_bytes(folder, size)
    return _Images(folder.classes, torch.tensor(folder.labels), size, held)


def _say_nothing(note: str) -> None:
    """Streamed images show as no bytes."""


def _noise(images: _Images, batch: int) -> Dataset:
    """Enough random images for the steps that are measured."""
    shape = (STEPS * batch, 3, images.size, images.size)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.arange(len(pixels)) % len(images.classes)
    return Dataset("noise", images.classes, LabelledImages(pixels, labels))


class _Gauge:
    """An observer that times steps and adds up what autograd keeps in each part of one.

    Args:
        network: its weights are not counted.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self._kept: dict[int, int] = {}
        self._since, self._times = time.perf_counter(), list[float]()
        self.largest = 0

    @property
    def seconds(self) -> float:
        """Median of a step, without the first."""
        return median(self._times[1:] or self._times)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Be told of every tensor that is kept for a backward pass."""
        parts = self._network.register_forward_pre_hook(self._begin_part)
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept):
                yield
        finally:
            parts.remove()

    def _begin_part(self, *_: object) -> None:
        self.largest = max(self.largest, sum(self._kept.values()))
        self._kept.clear()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        """A step ends, the next one begins."""
        now = time.perf_counter()
        self._times.append(now - self._since)
        self._begin_part()
        self._since = time.perf_counter()

    def epoch(self, metrics: EpochMetrics) -> None:
        """Nothing: only steps are measured."""


def _layers(network: LipConvNet, batch: int, device: torch.device) -> tuple[RehearsedLayer, ...]:
    """The modules of the body and the head, from one forward pass in training mode."""
    modules = {f"body.{name}": child for name, child in network.body.named_children()}
    modules["head"] = network.head
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ANN401
        # (n, n, batch, c) in the body, (batch, classes) after the head
        shapes[module] = (*output.shape[:-2], output.shape[-1])

    hooks = [module.register_forward_hook(note) for module in modules.values()]
    size = network.architecture.image_size
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.train()(torch.zeros(batch, 3, size, size, device=device))
    for hook in hooks:
        hook.remove()
    flops = counter.get_flop_counts()
    return tuple(
        RehearsedLayer(
            name=name,
            kind=type(module).__name__,
            shape=shapes[module],
            parameters=sum(p.numel() for p in module.parameters()),
            macs=sum(flops.get(f"{type(network).__name__}.{name}", {}).values()) // (2 * batch),
        )
        for name, module in modules.items()
    )
