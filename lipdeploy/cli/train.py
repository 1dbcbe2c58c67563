"""`lipdeploy train`."""

import math
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from lipdeploy.cli import options, training_options
from lipdeploy.errors import LipdeployError, UsageError
from lipdeploy.report.console import print_detail, print_hint, print_line, print_note

if TYPE_CHECKING:
    from lipdeploy.report.training import TrainingProgress
    from lipdeploy.training.data import LabelledImages
    from lipdeploy.training.lipconvnet import LipConvNet
    from lipdeploy.training.loop import Observer, Trainer
    from lipdeploy.training.session import TrainingRequest

INTERRUPTED = 130

NETWORK = ("depth", "width", "head", "padding", "layer", "activation", "pooling")
"""Parameters that are fields of `Architecture`."""

TRAINING = {
    "epochs": "epochs",
    "batch_size": "batch",
    "learning_rate": "lr",
    "loss": "loss",
    "offset": "u",
    "temperature": "t",
    "beta": "beta",
    "certificate": "cr",
    "curvature": "curvature",
    "validation": "validation",
    "ema": "ema",
    "keep": "keep",
    "certify_every": "certify_every",
    "seed": "seed",
    "precision": "precision",
}
"""Fields of `TrainingOptions`, and the parameter that sets each."""

CHANGEABLE = ("learning_rate", "precision")
"""Those that a resumed run can change."""


def train(
    context: typer.Context,
    dataset: options.TrainData,
    recipe: training_options.Recipe = None,
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
    loss: training_options.Loss = "offset",
    u: options.Offset = 0.4,
    t: options.Temperature = 0.25,
    beta: training_options.Beta = 5.0,
    cr: training_options.Certificate = 0.0,
    curvature: options.Curvature = 0.0,
    ema: training_options.Ema = 0.0,
    seed: options.Seed = 0,
    precision: options.Precision = "float32",
    validation: options.Validation = 0.05,
    keep: training_options.Keep = "last",
    certify_every: training_options.CertifyEvery = 0,
    tensorboard: training_options.Tensorboard = False,
    dry_run: training_options.DryRun = False,
    list_recipes: training_options.ListRecipes = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Train a 1-Lipschitz network; leaves model.pt, checkpoint.pt and metrics.csv in --out.

    Example: lipdeploy train cifar10 --width 32 --epochs 20 --precision bfloat16
    """
    from lipdeploy.report.training import TrainingProgress
    from lipdeploy.training.session import TrainingRequest, prepare

    given = _given(context)
    values = dict(context.params)
    network = {name: values[name] for name in NETWORK}
    training = {field: values[name] for field, name in TRAINING.items()}
    if resume:
        _check_resume(given, out)
    if recipe is not None:
        _apply_recipe(recipe, network, training, given)
    request = TrainingRequest(
        dataset=dataset,
        data=data,
        out=out or _new_run_folder(dataset),
        image_size=image_size,
        device=device,
        workers=workers,
        network=network,
        options=training,
        command=shlex.join(["lipdeploy", *sys.argv[1:]]),
        changes={key: training[key] for key in CHANGEABLE if TRAINING[key] in given},
    )
    if dry_run:
        _rehearse(request)
        return
    if tensorboard:
        from lipdeploy.training.tensorboard import check_tensorboard

        check_tensorboard()
    with TrainingProgress() as progress:
        trainer = prepare(request, resume=resume, progress=progress.decoded, note=print_note)
        trainer.certify = _certified_shares
        print_note(trainer.description)
        print_detail(str(trainer.options))
        already_done = trainer.is_finished
        progress.start(trainer.options.epochs, trainer.steps, trainer.finished_epochs)
        with _watching(trainer, progress, tensorboard) as observer, _stopping_gently(trainer):
            trainer.run(observer)
    if not trainer.is_finished:
        again = shlex.join(["lipdeploy", "train", dataset, "--out", str(request.out), "--resume"])
        _tell_stopped(trainer, again)
        raise typer.Exit(INTERRUPTED)
    _tell_finished(trainer, already_done)


def _rehearse(request: "TrainingRequest") -> None:
    """Show what the run would take."""
    from lipdeploy.exporters.rehearsal import frozen_macs
    from lipdeploy.report.planning import write_rehearsal
    from lipdeploy.training.rehearsal import rehearse

    rehearsal = rehearse(request)
    write_rehearsal(rehearsal, frozen_macs(rehearsal.network))


def _tell_finished(trainer: "Trainer", already_done: bool) -> None:
    if already_done:
        print_note("Nothing was left to do: all epochs of that run were done.")
    elif not trainer.has_learned:
        print_note("The network hardly learned; try a smaller --batch or --lr, or more --epochs.")
    if trainer.choice.epoch is not None:
        print_note(f"model.pt holds epoch {trainer.choice.epoch}, the best by validation.")
    print_line(f"Trained: {trainer.model_path}")
    print_hint("Next:", f"  {shlex.join(['lipdeploy', 'export', str(trainer.model_path)])}")


def _apply_recipe(
    name: str, network: dict[str, Any], training: dict[str, Any], given: set[str]
) -> None:
    """Replace what does not stand on the command line by what the recipe has."""
    from lipdeploy.training.recipe import load_recipe

    recipe = load_recipe(name)
    network.update({key: v for key, v in recipe.network.items() if key not in given})
    chosen = {key: v for key, v in recipe.training.items() if TRAINING.get(key) not in given}
    training.update(chosen, recipe=recipe.name)


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
    """Everybody who watches the run; draws its curves at the end."""
    from lipdeploy.report.training import LearningCurves
    from lipdeploy.training.observers import Observers

    curves = LearningCurves(trainer.metrics, trainer.folder)
    with ExitStack() as stack:
        observers: list[Observer] = [progress, curves]
        if tensorboard:
            from lipdeploy.training.tensorboard import TensorBoard

            board = TensorBoard(trainer.folder, trainer.finished_epochs)
            observers.append(stack.enter_context(board))
        yield Observers(*observers)
        curves.draw()


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _check_resume(given: set[str], out: Path | None) -> None:
    """Raise UsageError unless --out is given and no option that the checkpoint holds."""
    if out is None:
        raise UsageError("--resume needs --out DIR, the folder of the run to go on with")
    free = {"dataset", "out", "resume", "data", "device", "workers", "tensorboard"}
    free |= {TRAINING[field] for field in CHANGEABLE}
    if "dry_run" in given:
        raise UsageError("--dry-run is about a new run; leave out --resume, or ask for it")
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
    held = trainer.choice.epoch or done
    state = f"epoch {held}" if done else "0 epochs: it has learned nothing yet"
    print_line(f"Stopped; {trainer.model_path} holds {state}.")
    print_hint("Go on with:", f"  {again}")
