"""The command line: thin Typer commands that import what they need when they run."""

import shlex
import sys
from datetime import UTC, datetime
from fractions import Fraction
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer

import lipdeploy
from lipdeploy import options
from lipdeploy.bounds import up
from lipdeploy.errors import LipdeployError, UsageError
from lipdeploy.locate import find_images, find_model
from lipdeploy.report import (
    PredictionRows,
    TrainingProgress,
    export_summary,
    prediction_note,
    print_error,
    print_line,
    print_note,
    stages,
    write_csv,
    write_json,
    write_table,
)

INTERRUPTED = 130

app = typer.Typer(
    help=lipdeploy.__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        print_line(f"lipdeploy {lipdeploy.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """1-Lipschitz image classifiers whose every answer carries a guaranteed l2 radius."""


@app.command()
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
    epochs: options.Epochs = 20,
    batch: options.BatchSize = None,
    lr: options.LearningRate = 0.2,
    u: options.Offset = 0.4,
    t: options.Temperature = 0.25,
    curvature: options.Curvature = 0.0,
    validation: options.Validation = 0.05,
    seed: options.Seed = 0,
    precision: options.Precision = "float32",
) -> None:
    """Train a 1-Lipschitz network; leaves model.pt, checkpoint.pt and metrics.csv in --out.

    Example: lipdeploy train cifar10 --width 32 --epochs 20 --precision bfloat16
    """
    from lipdeploy.training.session import TrainingRequest, prepare

    if resume:
        _check_resume(context, out)
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
            "learning_rate": lr,
            "offset": u,
            "temperature": t,
            "curvature": curvature,
            "validation": validation,
            "seed": seed,
            "precision": precision,
        },
        command=shlex.join(["lipdeploy", *sys.argv[1:]]),
    )
    again = shlex.join(["lipdeploy", "train", dataset, "--out", str(request.out), "--resume"])
    with TrainingProgress() as progress:
        trainer = prepare(request, resume=resume, progress=progress.decoded)
        already_done = trainer.finished_epochs == trainer.options.epochs
        progress.start(trainer.options.epochs, trainer.steps, trainer.finished_epochs)
        try:
            trainer.run(progress)
        except KeyboardInterrupt:
            progress.stop()
            done = trainer.finished_epochs
            state = f"epoch {done}" if done else "0 epochs: it has learned nothing yet"
            print_line(f"Stopped; {trainer.model_path} holds {state}. Go on with:\n  {again}")
            raise typer.Exit(INTERRUPTED) from None
    if already_done:
        print_line("Nothing was left to do: all epochs of that run were done.")
    elif not trainer.has_learned:
        print_note("The network hardly learned; try a smaller --batch or --lr, or more --epochs.")
    export_command = shlex.join(["lipdeploy", "export", str(trainer.model_path)])
    print_line(f"Trained: {trainer.model_path}. Next:\n  {export_command}")


@app.command()
def export(
    model: options.TrainedModel,
    engine: options.Engine = "onnx",
    output: options.Output = None,
    form: options.Form = "auto",
    weights: options.Weights = "float16",
) -> None:
    """Freeze a trained model into one engine file, prove its bounds, check it against float64.

    Example: lipdeploy export runs/cifar10/model.pt --engine onnx
    """
    from lipdeploy.exporters.export import ExportOptions, export_model

    chosen: dict[str, Any] = {"engine": engine, "form": form, "weights": weights}
    export_options = ExportOptions(**chosen)
    with stages() as stage:
        exported = export_model(model, output or model.with_suffix(".onnx"), export_options, stage)
    export_summary(exported)


@app.command()
def predict(
    images: options.Images,
    certify: options.Certify = False,
    model: options.EngineFile = None,
    guarantee: options.Guarantee = "network",
    min_radius: options.MinRadius = None,
    device: options.Device = "auto",
    runtime: options.Runtime = "onnxruntime",
    batch: options.ImagesPerBatch = 64,
    as_json: options.AsJson = False,
    as_csv: options.AsCsv = False,
) -> None:
    """Classify images, with --certify by how far their pixels can move before the class could.

    The radius is an l2 distance in the network's input, pixels in [0, 1]. Decoding a file into
    pixels is outside the guarantee. Exit status: 1 if an image cannot be read, 3 if one is below
    --min-radius.

    Example: lipdeploy predict photos/ --certify --min-radius 36/255
    """
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other; choose one")
    certify = certify or min_radius is not None
    limit = None if min_radius is None else parse_radius(min_radius)
    sources = find_images(images)
    path, reason = find_model(model)
    if reason != "given":
        print_note(f"model: {path} ({reason})")

    from lipdeploy.predictor import Predictor

    arguments: dict[str, Any] = {"guarantee": guarantee, "device": device, "runtime": runtime}
    with Predictor(path, certify=certify, batch_size=batch, **arguments) as predictor:
        rows = PredictionRows(predictor, limit)
        stream = map(rows.row, predictor.attempt(sources))
        if as_json:
            write_json(stream)
        elif as_csv:
            write_csv(stream)
        else:
            write_table(stream, certify=certify)
            print_note(prediction_note(predictor, rows))
    if rows.failures or rows.abstained:
        raise typer.Exit(1 if rows.failures else 3)


def parse_radius(text: str) -> float:
    """A radius from "36/255" or "0.14", rounded up; raises UsageError for anything else."""
    try:
        value = Fraction(text)
        rounded = up(float(value)) if value else 0.0
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        message = f"--min-radius {text}: expected a number or a fraction, as 36/255"
        raise UsageError(message) from error
    if value < 0:
        raise UsageError(f"--min-radius {text}: must not be negative")
    return rounded


def _check_resume(context: typer.Context, out: Path | None) -> None:
    """Raise UsageError unless --out is given and no option that the checkpoint holds."""
    if out is None:
        raise UsageError("--resume needs --out DIR, the folder of the run to go on with")
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    fixed = given - {"dataset", "out", "resume", "data", "device", "workers"}
    if fixed:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(fixed))
        raise UsageError(f"--resume takes {names} from the checkpoint; leave it out")


def _new_run_folder(dataset: str) -> Path:
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{Path(dataset).resolve().name}-{moment}"


def main() -> None:
    """Run the command line; an expected error is one line and an exit status."""
    try:
        app()
    except LipdeployError as error:
        if "--debug" in takewhile(lambda argument: argument.startswith("-"), sys.argv[1:]):
            raise
        print_error(str(error))
        sys.exit(error.exit_status)
    except OSError as error:
        print_error(f"{error.filename or 'output'}: {error.strerror or error}")
        sys.exit(1)
