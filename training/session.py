"""From a request for a training run to a Trainer that is ready to go."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lipdeploy.datasets import CIFAR_NAMES, check_test_classes, scan_folder, unknown_dataset
from lipdeploy.errors import UsageError
from lipdeploy.files import make_writable_folder
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.data import Dataset, Progress
from lipdeploy.training.device import chosen_device
from lipdeploy.training.distributed import ALONE, Processes
from lipdeploy.training.loading import Source, load_dataset
from lipdeploy.training.loop import Trainer
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.run_folder import (
    CHECKPOINT_NAME,
    PREVIOUS_NAME,
    RUN_FILES,
    Note,
    Resumed,
    read_checkpoint,
)
from lipdeploy.training.stream import HASH_OF_FILES


@dataclass(frozen=True)
class TrainingRequest:
    """What a caller asks for.

    Attributes:
        dataset: "cifar10", "cifar100" or a folder.
        data: where CIFAR is, or goes.
        out: the run's folder.
        image_size: side of the input, or None for that of the data.
        device: "auto", "cpu", "cuda", ...
        workers: decoding processes; 0 for one a core.
        network: fields of `Architecture`, without image size and classes.
        options: fields of `TrainingOptions`, without device.
        command: the command line, kept in the model.
        changes: of a resumed run, the options that replace those of its checkpoint.
        stream: whether to decode images whenever they are needed, even where memory is enough. A
            resumed run does what it did before.
        compiled: whether to compile the training passes, which changes results by rounding only.
    """

    dataset: str
    data: Path
    out: Path
    image_size: int | None
    device: str
    workers: int
    network: dict[str, Any]
    options: dict[str, Any]
    command: str
    changes: dict[str, Any] = field(default_factory=dict)
    stream: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class _Plan:
    """A request that was found to be sound, as far as that shows without its images."""

    options: TrainingOptions
    source: Source
    resumed: Resumed | None


def prepare(
    request: TrainingRequest,
    *,
    resume: bool,
    progress: Progress,
    note: Note,
    processes: Processes = ALONE,
) -> Trainer:
    """Load the data and build the run, or go back to its checkpoint.

    Args:
        request: what to do; the same in all processes.
        resume: whether to go back.
        progress: called with the number of images decoded and in all.
        note: called with what the user should know.
        processes: who train together.

    Raises:
        LipdeployError: if the data, the options or the checkpoint are not usable.
    """
    plan = processes.together(lambda: _plan(request, resume, note))
    with _new_folder(request.out) if processes.is_main else nullcontext():
        dataset = load_dataset(plan.source, processes, progress, note)
        return _build(request, plan, dataset, processes)


def _plan(request: TrainingRequest, resume: bool, note: Note) -> _Plan:
    held = [name for name in RUN_FILES if (request.out / name).exists()]
    if held and not resume:
        can_resume = {CHECKPOINT_NAME, PREVIOUS_NAME} & set(held)
        advice = "add --resume to go on with that run, or choose" if can_resume else "choose"
        raise UsageError(f"{request.out} already holds {held[0]}; {advice} another --out")
    if request.workers < 0:
        raise UsageError(f"--workers {request.workers}: must be 0 (one a core) or more")
    options = TrainingOptions(**request.options, device=chosen_device(request.device))
    Architecture(image_size=request.image_size or 32, classes=2, **request.network)
    image_size = request.image_size
    stream: bool | None = request.stream or None
    resumed = read_checkpoint(request.out, note) if resume else None
    if resumed is not None:
        options = replace(resumed.state.options, device=options.device, **request.changes)
        image_size = resumed.state.architecture.image_size
        stream = resumed.state.data_sha256.startswith(HASH_OF_FILES)
    check_dataset(request, image_size)
    source = Source(request.dataset, request.data, image_size, request.workers, stream)
    return _Plan(options, source, resumed)


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Make sure that a folder can be written into; where what follows fails, remove a new one."""
    is_new = not folder.exists()
    make_writable_folder(folder)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def _build(
    request: TrainingRequest, plan: _Plan, dataset: Dataset, processes: Processes
) -> Trainer:
    if plan.resumed is None:
        side, classes = dataset.images.side, len(dataset.classes)
        architecture = processes.together(lambda: Architecture(side, classes, **request.network))
        command = request.command
    else:
        architecture, command = plan.resumed.state.architecture, plan.resumed.state.command
    trainer = Trainer(
        dataset,
        architecture,
        plan.options,
        request.out,
        command,
        processes,
        is_compiled=request.compiled,
    )
    processes.together(lambda: _go_back(trainer, plan.resumed))
    return trainer


def _go_back(trainer: Trainer, resumed: Resumed | None) -> None:
    if resumed is not None:
        trainer.resume(resumed.state, seen=resumed.seen, is_last=resumed.is_last)


def check_dataset(request: TrainingRequest, image_size: int | None) -> None:
    """Find out what is wrong with a dataset before anything is written or decoded."""
    root = Path(request.dataset)
    if request.dataset in CIFAR_NAMES:
        if request.stream:
            raise UsageError(f"--stream is for folders; for {request.dataset} leave it out")
        if image_size not in (None, 32):
            raise UsageError(f"{request.dataset} has images of 32 pixels; leave out --image-size")
    elif not root.is_dir():
        raise unknown_dataset(request.dataset)
    else:
        check_test_classes(root, scan_folder(root, "train").classes)
