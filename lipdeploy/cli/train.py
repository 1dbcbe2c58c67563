"""`lipdeploy train`."""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from lipdeploy.cli import options
from lipdeploy.errors import UsageError
from lipdeploy.report.console import (
    Verbosity,
    print_detail,
    print_hint,
    print_line,
    print_note,
    set_verbosity,
)

if TYPE_CHECKING:
    from lipdeploy.training.distributed import Processes
    from lipdeploy.training.loop import Trainer
    from lipdeploy.training.session import TrainingRequest

INTERRUPTED = 130


def train(
    context: typer.Context,
    dataset: options.TrainData,
    out: options.Out = None,
    resume: options.Resume = False,
    data: options.Data = Path("data"),
    device: options.Device = "auto",
    workers: options.Workers = 0,
    stream: options.Stream = False,
    image_size: options.ImageSize = None,
    depth: options.Depth = 5,
    width: options.Width = 32,
    head: options.Head = "lln",
    padding: options.Padding = "circular",
    epochs: options.Epochs = 20,
    batch: options.BatchSize = None,
    accumulate: options.Accumulate = 1,
    lr: options.LearningRate = 0.2,
    u: options.Offset = 0.4,
    t: options.Temperature = 0.25,
    curvature: options.Curvature = 0.0,
    validation: options.Validation = 0.05,
    seed: options.Seed = 0,
    precision: options.Precision = "float32",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Train a 1-Lipschitz network; leaves model.pt, checkpoint.pt and metrics.csv in --out.

    Example: lipdeploy train cifar10 --width 32 --epochs 20 --precision bfloat16
    """
    from lipdeploy.training.distributed import joined
    from lipdeploy.training.session import TrainingRequest

    changeable = {
        "learning_rate": ("lr", lr),
        "precision": ("precision", precision),
        "accumulate": ("accumulate", accumulate),
    }
    given = _given(context)
    request = TrainingRequest(
        dataset=dataset,
        data=data,
        out=out or _new_run_folder(dataset),
        image_size=image_size,
        device=device,
        workers=workers,
        network={"depth": depth, "width": width, "head": head, "padding": padding},
        options={
            "epochs": epochs,
            "batch_size": batch,
            "accumulate": accumulate,
            "learning_rate": lr,
            "offset": u,
            "temperature": t,
            "curvature": curvature,
            "validation": validation,
            "seed": seed,
            "precision": precision,
        },
        command=shlex.join(["lipdeploy", *sys.argv[1:]]),
        changes={key: value for key, (name, value) in changeable.items() if name in given},
        stream=stream,
    )
    with joined(device) as processes:
        if resume:
            processes.together(lambda: _check_resume(given, out))
        request = replace(request, out=processes.from_main(request.out))
        is_finished = _train(request, resume, processes)
    if not is_finished:
        raise typer.Exit(INTERRUPTED)


def _train(request: "TrainingRequest", resume: bool, processes: "Processes") -> bool:
    """Train, and say what became of it; whether all epochs are done."""
    from lipdeploy.report.training import TrainingProgress
    from lipdeploy.training.session import prepare

    if not processes.is_main:
        set_verbosity(Verbosity.QUIET)
    with TrainingProgress() as progress:
        trainer = prepare(
            request,
            resume=resume,
            progress=progress.decoded,
            note=print_note,
            processes=processes,
        )
        print_note(trainer.description)
        print_detail(str(trainer.options))
        already_done = trainer.is_finished
        progress.start(trainer.options.epochs, trainer.steps, trainer.finished_epochs)
        with _stopping_gently(trainer):
            trainer.run(progress)
    if processes.is_main:
        _tell_result(trainer, request.dataset, already_done)
    return trainer.is_finished


def _tell_result(trainer: "Trainer", dataset: str, already_done: bool) -> None:
    if not trainer.is_finished:
        _tell_stopped(trainer, dataset)
        return
    if already_done:
        print_note("Nothing was left to do: all epochs of that run were done.")
    elif not trainer.has_learned:
        print_note("The network hardly learned; try a smaller --batch or --lr, or more --epochs.")
    model = trainer.model_path
    print_line(f"Trained: {model}")
    print_hint("Next:", f"  {shlex.join(['lipdeploy', 'export', str(model)])}")


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _check_resume(given: set[str], out: Path | None) -> None:
    """Raise UsageError unless --out is given and no option that the checkpoint holds."""
    if out is None:
        raise UsageError("--resume needs --out DIR, the folder of the run to go on with")
    free = {"dataset", "out", "resume", "data", "device", "workers", "quiet", "verbose", "debug"}
    if fixed := given - free - {"lr", "precision", "accumulate"}:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(fixed))
        raise UsageError(f"--resume takes {names} from the checkpoint; leave out")


def _new_run_folder(dataset: str) -> Path:
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{Path(dataset).resolve().name}-{moment}"


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


def _tell_stopped(trainer: "Trainer", dataset: str) -> None:
    done, size = trainer.finished_epochs, trainer.processes.size
    state = f"epoch {done}" if done else "0 epochs: it has learned nothing yet"
    print_line(f"Stopped; {trainer.model_path} holds {state}.")
    start = ["torchrun", "--nproc-per-node", str(size), "-m"] if size > 1 else []
    out = str(trainer.folder)
    again = [*start, "lipdeploy", "train", dataset, "--out", out, "--resume"]
    print_hint("Go on with:", f"  {shlex.join(again)}")
