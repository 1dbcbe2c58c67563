"""`lipdeploy train`."""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from lipdeploy.cli import options
from lipdeploy.errors import UsageError
from lipdeploy.report.console import print_detail, print_hint, print_line, print_note

if TYPE_CHECKING:
    from lipdeploy.training.loop import Trainer

INTERRUPTED = 130


def train(
    context: typer.Context,
    dataset: options.TrainData,
    out: options.Out = None,
    resume: options.Resume = False,
    data: options.Data = Path("data"),
    device: options.Device = "auto",
    workers: options.Workers = 0,
    image_size: options.ImageSize = None,
    depth: options.Depth = 5,
    width: options.Width = 32,
    head: options.Head = "lln",
    padding: options.Padding = "circular",
    layer: options.Layer = "soc",
    activation: options.Activation = "maxmin",
    pooling: options.Pooling = "max",
    epochs: options.Epochs = 20,
    batch: options.BatchSize = None,
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
    from lipdeploy.report.training import TrainingProgress
    from lipdeploy.training.session import TrainingRequest, prepare

    changeable = {"learning_rate": ("lr", lr), "precision": ("precision", precision)}
    given = _given(context)
    if resume:
        _check_resume(given, out)
    request = TrainingRequest(
        dataset=dataset,
        data=data,
        out=out or _new_run_folder(dataset),
        image_size=image_size,
        device=device,
        workers=workers,
        network={
            "depth": depth,
            "width": width,
            "head": head,
            "padding": padding,
            "layer": layer,
            "activation": activation,
            "pooling": pooling,
        },
        options={
            "epochs": epochs,
            "batch_size": batch,
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
    )
    with TrainingProgress() as progress:
        trainer = prepare(request, resume=resume, progress=progress.decoded, note=print_note)
        print_note(trainer.description)
        print_detail(str(trainer.options))
        already_done = trainer.is_finished
        progress.start(trainer.options.epochs, trainer.steps, trainer.finished_epochs)
        with _stopping_gently(trainer):
            trainer.run(progress)
    if not trainer.is_finished:
        again = shlex.join(["lipdeploy", "train", dataset, "--out", str(request.out), "--resume"])
        _tell_stopped(trainer, again)
        raise typer.Exit(INTERRUPTED)
    if already_done:
        print_note("Nothing was left to do: all epochs of that run were done.")
    elif not trainer.has_learned:
        print_note("The network hardly learned; try a smaller --batch or --lr, or more --epochs.")
    print_line(f"Trained: {trainer.model_path}")
    print_hint("Next:", f"  {shlex.join(['lipdeploy', 'export', str(trainer.model_path)])}")


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _check_resume(given: set[str], out: Path | None) -> None:
    """Raise UsageError unless --out is given and no option that the checkpoint holds."""
    if out is None:
        raise UsageError("--resume needs --out DIR, the folder of the run to go on with")
    free = {"dataset", "out", "resume", "data", "device", "workers", "lr", "precision"}
    if fixed := given - free - {"quiet", "verbose", "debug"}:
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
        pass
    finally:
        signal.signal(signal.SIGINT, before)


def _tell_stopped(trainer: "Trainer", again: str) -> None:
    done = trainer.finished_epochs
    state = f"epoch {done}" if done else "0 epochs: it has learned nothing yet"
    print_line(f"Stopped; {trainer.model_path} holds {state}.")
    print_hint("Go on with:", f"  {again}")
