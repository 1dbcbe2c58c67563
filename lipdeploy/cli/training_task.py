"""What `lipdeploy train` does: a run, by one process or several, or its rehearsal."""

import math
import shlex
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from lipdeploy.errors import LipdeployError
from lipdeploy.report.console import (
    Verbosity,
    print_detail,
    print_hint,
    print_line,
    print_note,
    set_verbosity,
)

if TYPE_CHECKING:
    from lipdeploy.report.training import TrainingProgress
    from lipdeploy.training.data import LabelledImages
    from lipdeploy.training.distributed import Processes
    from lipdeploy.training.lipconvnet import LipConvNet
    from lipdeploy.training.loop import Trainer
    from lipdeploy.training.observers import Observer
    from lipdeploy.training.session import TrainingRequest

INTERRUPTED = 130


def rehearse(request: "TrainingRequest", processes: "Processes") -> None:
    """Show what the run would take of one process; of several the main one does."""
    from lipdeploy.exporters.rehearsal import frozen_macs
    from lipdeploy.report.planning import write_rehearsal
    from lipdeploy.training.rehearsal import rehearse as rehearsed

    if processes.is_main:
        rehearsal = rehearsed(request)
        write_rehearsal(rehearsal, frozen_macs(rehearsal.network))


def run(
    request: "TrainingRequest", processes: "Processes", *, resume: bool, tensorboard: bool
) -> bool:
    """Train, and say what became of it; whether all epochs are done."""
    from lipdeploy.report.training import TrainingProgress
    from lipdeploy.training.session import prepare

    if not processes.is_main:
        set_verbosity(Verbosity.QUIET)
    if tensorboard:
        from lipdeploy.training.tensorboard import check_tensorboard

        processes.together(check_tensorboard)
    # Processes may start in different seconds, after which a folder is called.
    request = replace(request, out=processes.from_main(request.out))
    with TrainingProgress() as progress:
        trainer = prepare(
            request,
            resume=resume,
            progress=progress.decoded,
            note=print_note,
            processes=processes,
        )
        trainer.certify = _certified_shares
        already_done = trainer.is_finished
        _train(trainer, progress, tensorboard)
    if processes.is_main:
        _tell_result(trainer, request.dataset, already_done)
    return trainer.is_finished


def _train(trainer: "Trainer", progress: "TrainingProgress", tensorboard: bool) -> None:
    print_note(trainer.description)
    print_detail(str(trainer.options))
    if trainer.learner.is_compiled and not trainer.is_finished:
        print_note("Compiling: the first step takes a few minutes, less where torch kept it.")
    progress.start(trainer.options.epochs, trainer.steps, trainer.finished_epochs)
    with ExitStack() as stack:
        watching = _watching(trainer, progress, tensorboard)
        observer = trainer.processes.together(lambda: stack.enter_context(watching))
        stack.enter_context(_stopping_gently(trainer))
        trainer.run(observer)


def _tell_result(trainer: "Trainer", dataset: str, already_done: bool) -> None:
    if not trainer.is_finished:
        _tell_stopped(trainer, dataset)
        return
    if already_done:
        print_note("Nothing was left to do: all epochs of that run were done.")
    elif not trainer.has_learned:
        print_note("The network hardly learned; try a smaller --batch or --lr, or more --epochs.")
    if trainer.choice.epoch is not None:
        print_note(f"model.pt holds epoch {trainer.choice.epoch}, the best by validation.")
    elif trainer.choice.has_found_none:
        print_note(
            f"model.pt holds the last epoch, {trainer.finished_epochs}: --keep best had none to "
            "choose, because no epoch could be certified; leave out --certify-every to choose by "
            "accuracy."
        )
    print_line(f"Trained: {trainer.model_path}")
    print_hint("Next:", f"  {shlex.join(['lipdeploy', 'export', str(trainer.model_path)])}")


def _tell_stopped(trainer: "Trainer", dataset: str) -> None:
    done, size = trainer.finished_epochs, trainer.processes.size
    held = trainer.choice.epoch or done
    state = f"epoch {held}" if done else "0 epochs: it has learned nothing yet"
    print_line(f"Stopped; {trainer.model_path} holds {state}.")
    start = ["torchrun", "--nproc-per-node", str(size), "-m"] if size > 1 else []
    out = str(trainer.folder)
    again = [*start, "lipdeploy", "train", dataset, "--out", out, "--resume"]
    again += ["--compile"] * trainer.learner.is_compiled
    print_hint("Go on with:", f"  {shlex.join(again)}")


def _certified_shares(
    network: "LipConvNet", images: "LabelledImages", radii_255: tuple[int, ...]
) -> tuple[float, ...]:
    """Of the frozen network; a network that cannot be frozen yet does not end its training."""
    from lipdeploy.exporters.validation import certified_shares

    try:
        return certified_shares(network, images, radii_255)
    except (LipdeployError, MemoryError) as error:
        print_note(f"Not certified: {str(error) or 'not enough memory'}")
        return tuple(math.nan for _ in radii_255)


@contextmanager
def _watching(
    trainer: "Trainer", progress: "TrainingProgress", tensorboard: bool
) -> Iterator["Observer"]:
    """Everybody who watches the run; draws its curves at the end. Only the main process has any."""
    from lipdeploy.report.training import LearningCurves
    from lipdeploy.training.observers import Observers

    if not trainer.processes.is_main:
        yield progress
        return
    curves = LearningCurves(trainer.files.metrics, trainer.folder)
    with ExitStack() as stack:
        observers: list[Observer] = [progress, curves]
        if tensorboard:
            from lipdeploy.training.tensorboard import TensorBoard

            board = TensorBoard(trainer.folder, trainer.finished_epochs)
            observers.append(stack.enter_context(board))
        yield Observers(*observers)
        curves.draw()


@contextmanager
def _stopping_gently(trainer: "Trainer") -> Iterator[None]:
    """The first Ctrl-C ends the run after its epoch, the second at once; neither is an error."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not trainer.stop_after_epoch():
            raise KeyboardInterrupt
        epoch = trainer.finished_epochs + 1
        print_note(f"Stopping after epoch {epoch}; press Ctrl-C again to stop now and lose it.")

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    except KeyboardInterrupt:
        # The others are in the middle of a step and must not be waited for.
        if trainer.processes.size > 1:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
