"""`lipdeploy benchmark`."""

import math
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lipdeploy.cli import options
from lipdeploy.cli.values import engine_of, parse_radii, test_images
from lipdeploy.errors import UsageError
from lipdeploy.report.console import print_detail, stages

if TYPE_CHECKING:
    from lipdeploy.datasets import LabelledSources

RADII = (Fraction(36, 255),)


def benchmark(
    artifacts: options.Artifacts,
    data: options.BenchmarkData = None,
    radii: options.BenchmarkRadii = None,
    limit: options.BenchmarkLimit = None,
    batch: options.BatchSizes = "1,8,64",
    seconds: options.Seconds = 2.0,
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Time engines side by side on this machine; with --data compare their answers, too.

    A line an engine and batch size: median, quartiles and 95 % quantile of a call of the engine,
    and of the same with certificates. All take turns, so that noise hits them alike. Exit status 1
    if an image of the test set has no answer.

    Example: lipdeploy benchmark model.onnx other.onnx --batch 1,64 --data cifar10 --limit 1000
    """
    batches = _batches(batch)
    counted = parse_radii(radii) if radii else RADII
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds {seconds:g}: must be more than 0")
    images = _images(data, limit, radii)

    from lipdeploy.measuring import compare_answers, time_engines
    from lipdeploy.predictor import Predictor
    from lipdeploy.report import benchmark as report
    from lipdeploy.report.evaluation import watched

    arguments: dict[str, Any] = {"device": device, "runtime": runtime, "batch_size": max(batches)}
    with ExitStack() as stack:
        predictors = [
            stack.enter_context(Predictor(engine_of(artifact), **arguments))
            for artifact in artifacts
        ]
        for predictor in predictors:
            print_detail(predictor.description)
            if images is not None:
                images.in_order_of(predictor.manifest.classes)
        with stages() as stage:
            times = time_engines(predictors, batches, seconds, stage)
        engines = [report.Measured(p, timed) for p, timed in zip(predictors, times, strict=True)]
        if images is not None:
            answers = compare_answers(predictors, images, partial(watched, total=len(images)))
            engines = [replace(e, answers=a) for e, a in zip(engines, answers, strict=True)]
        if as_json:
            for engine in engines:
                report.write_rows(engine, counted)
        else:
            report.write_times(engines)
            report.write_answers(engines, counted)
    if report.tell_unanswered(engines):
        raise typer.Exit(1)


def _batches(text: str) -> tuple[int, ...]:
    """Batch sizes between commas, each once."""
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise UsageError(
            f"--batch {text}: expected whole numbers, separated by commas, as 1,8,64"
        ) from error
    if min(sizes) < 1:
        raise UsageError(f"--batch {text}: must be at least 1")
    return sizes


def _images(
    data: str | None, limit: int | None, radii: list[str] | None
) -> "LabelledSources[Any] | None":
    """The images to compare answers on; None where nobody asks for that."""
    for option, value in (("--limit", limit), ("--radii", radii)):
        if data is None and value is not None:
            raise UsageError(f"{option} says how to compare answers; add --data, or leave it out")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1")
    if data is None:
        return None
    images = test_images(data, Path("data"))
    return images if limit is None else images.spread(limit)
