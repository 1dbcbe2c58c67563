"""`lipdeploy train`: what stands on the command line; `training_task` does it."""

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lipdeploy.cli import options, training_options
from lipdeploy.cli.training_task import INTERRUPTED, rehearse, run
from lipdeploy.errors import UsageError

if TYPE_CHECKING:
    from lipdeploy.training.session import TrainingRequest

NETWORK = ("depth", "width", "head", "padding", "layer", "activation", "pooling")
"""Parameters that are fields of `Architecture`."""

TRAINING = {
    "epochs": "epochs",
    "batch_size": "batch",
    "accumulate": "accumulate",
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

CHANGEABLE = ("learning_rate", "precision", "accumulate")
"""Those that a resumed run can change."""


def train(
    context: typer.Context,
    dataset: training_options.TrainData,
    recipe: training_options.Recipe = None,
    out: training_options.Out = None,
    resume: training_options.Resume = False,
    data: options.Data = Path("data"),
    device: options.Device = "auto",
    workers: training_options.Workers = 0,
    stream: training_options.Stream = False,
    compiled: training_options.Compiled = False,
    image_size: training_options.ImageSize = None,
    depth: training_options.Depth = 5,
    width: training_options.Width = 32,
    head: training_options.Head = "lln",
    padding: training_options.Padding = "circular",
    layer: training_options.Layer = "soc",
    activation: training_options.Activation = "maxmin",
    pooling: training_options.Pooling = "max",
    epochs: training_options.Epochs = 20,
    batch: training_options.BatchSize = None,
    accumulate: training_options.Accumulate = 1,
    lr: training_options.LearningRate = 0.2,
    loss: training_options.Loss = "offset",
    u: training_options.Offset = 0.4,
    t: training_options.Temperature = 0.25,
    beta: training_options.Beta = 5.0,
    cr: training_options.Certificate = 0.0,
    curvature: training_options.Curvature = 0.0,
    ema: training_options.Ema = 0.0,
    seed: training_options.Seed = 0,
    precision: training_options.Precision = "float32",
    validation: training_options.Validation = 0.05,
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
    from lipdeploy.training.distributed import joined

    given = _given(context)
    with joined(device) as processes:
        request = processes.together(lambda: _request(context.params, given))
        if dry_run:
            processes.together(lambda: rehearse(request, processes))
            return
        is_finished = run(request, processes, resume=resume, tensorboard=tensorboard)
    if not is_finished:
        raise typer.Exit(INTERRUPTED)


def _request(values: dict[str, Any], given: set[str]) -> "TrainingRequest":
    """What the parameters ask for.

    Args:
        values: of all parameters, by their names.
        given: those that stand on the command line.

    Raises:
        UsageError: if they do not fit together, or the recipe is wrong.
    """
    from lipdeploy.training.session import TrainingRequest

    network = {name: values[name] for name in NETWORK}
    training = {field: values[name] for field, name in TRAINING.items()}
    if values["dry_run"] and values["compiled"]:
        raise UsageError("--dry-run times steps that are not compiled; leave out --compile")
    if values["resume"]:
        _check_resume(given, values["out"])
    if values["recipe"] is not None:
        _apply_recipe(values["recipe"], network, training, given)
    same = ("dataset", "data", "image_size", "device", "workers", "stream", "compiled")
    return TrainingRequest(
        **{name: values[name] for name in same},
        out=values["out"] or _new_run_folder(values["dataset"]),
        network=network,
        options=training,
        command=shlex.join(["lipdeploy", *sys.argv[1:]]),
        changes={key: training[key] for key in CHANGEABLE if TRAINING[key] in given},
    )


def _apply_recipe(
    name: str, network: dict[str, Any], training: dict[str, Any], given: set[str]
) -> None:
    """Replace what does not stand on the command line by what the recipe has."""
    from lipdeploy.training.recipe import load_recipe

    recipe = load_recipe(name)
    network.update({key: v for key, v in recipe.network.items() if key not in given})
    chosen = {key: v for key, v in recipe.training.items() if TRAINING.get(key) not in given}
    training.update(chosen, recipe=recipe.name)


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _check_resume(given: set[str], out: Path | None) -> None:
    """Raise UsageError unless --out is given and no option that the checkpoint holds."""
    if out is None:
        raise UsageError("--resume needs --out DIR, the folder of the run to go on with")
    free = {"dataset", "out", "resume", "data", "device", "workers", "compiled", "tensorboard"}
    free |= {TRAINING[field] for field in CHANGEABLE}
    if "dry_run" in given:
        raise UsageError("--dry-run is about a new run; leave out --resume, or ask for it")
    if fixed := given - free - {"quiet", "verbose", "debug"}:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(fixed))
        raise UsageError(f"leave out {names}: with --resume the checkpoint decides")


def _new_run_folder(dataset: str) -> Path:
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{Path(dataset).resolve().name}-{moment}"
