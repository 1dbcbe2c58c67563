"""`lipdeploy evaluate`."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lipdeploy.cli import evaluation_options, options
from lipdeploy.cli.values import check_no_test_set, parse_radii, test_images
from lipdeploy.errors import UsageError
from lipdeploy.files import check_output
from lipdeploy.report.console import print_json, print_note, stages

if TYPE_CHECKING:
    from lipdeploy.report.summary import Evaluated


def evaluate(
    models: evaluation_options.EvaluatedModels,
    dataset: evaluation_options.TestData,
    radii: evaluation_options.Radii = None,
    limit: evaluation_options.Limit = None,
    csv: evaluation_options.ImageTable = None,
    parquet: evaluation_options.ParquetTable = None,
    curve: evaluation_options.Curve = None,
    report: evaluation_options.Report = None,
    resume: evaluation_options.ResumeFolder = None,
    data: options.Data = Path("data"),
    guarantee: options.Guarantee = None,
    tight: options.Tight = False,
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    batch: options.ImagesPerBatch = 64,
    as_json: options.AsJson = False,
    attack: evaluation_options.Attack = False,
    attack_images: evaluation_options.AttackImages = None,
    attack_seed: evaluation_options.AttackSeed = 0,
    auto_attack: evaluation_options.AutoAttack = False,
    explain: evaluation_options.Explain = None,
    explain_image: evaluation_options.ExplainImage = None,
    corruptions: evaluation_options.Corruptions = False,
    corruption: evaluation_options.Corruption = None,
    severity: evaluation_options.Severity = None,
    corruption_seed: evaluation_options.CorruptionSeed = 0,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Count right answers, and right answers certified at each radius, on a test set.

    Several models are compared on the same images. Images that cannot be read count as wrong; exit
    status 1 if there are any, or if an attack or a corruption contradicts a certificate.

    Example: lipdeploy evaluate runs/cifar10/model.onnx cifar10 --report report.html
    """
    from lipdeploy.cli.attack import attack_request
    from lipdeploy.cli.corruption import corruption_request
    from lipdeploy.evaluation import STANDARD_RADII

    counted = parse_radii(radii) if radii else STANDARD_RADII
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1")
    evaluation_options.check_no_corruption([*map(str, models), dataset])
    check_no_test_set(models)
    outputs = _Outputs(csv, parquet, curve, report)
    outputs.check()
    request = attack_request(
        attack, attack_images, attack_seed, auto_attack, explain, explain_image
    )
    if request is not None and len(models) > 1:
        raise UsageError(f"--attack and --explain take one model, got {len(models)}")
    shift = corruption_request(corruptions, corruption, severity, corruption_seed)
    images = test_images(dataset, data)
    images = images if limit is None else images.spread(limit)
    settings = {"guarantee": guarantee, "tight": tight, "device": device, "runtime": runtime}

    from lipdeploy.cli.evaluation_task import Task
    from lipdeploy.report.images import image_tables

    task = Task(images, counted, settings | {"batch_size": batch}, resume, None, request, shift)
    if resume is not None or report is not None:
        with stages() as stage:
            stage("hash the images")
            task = replace(task, data_sha256=images.sha256())
    with task.only_writer(), image_tables(csv, parquet) as write_image:
        runs = [task.run(model, number, write_image) for number, model in enumerate(models, 1)]
    _write(outputs, _compared(runs, counted), counted, as_json=as_json)
    if any(run.evaluation.unreadable or run.is_contradicted for run in runs):
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Outputs:
    """The files that are asked for."""

    csv: Path | None
    parquet: Path | None
    curve: Path | None
    report: Path | None

    def check(self) -> None:
        """Make sure, before the work, that each can be written."""
        if self.curve is not None:
            from lipdeploy.plots import check_matplotlib

            check_matplotlib()
        if self.parquet is not None:
            from lipdeploy.report.images import check_pyarrow

            check_pyarrow()
        if self.report is not None:
            from lipdeploy.report.page import check_jinja

            check_jinja()
        suffixes = {"csv": ".csv", "parquet": ".parquet", "curve": ".png", "report": ".html"}
        for name, suffix in suffixes.items():
            path = getattr(self, name)
            if path is not None:
                _check_file(f"--{name}", path, suffix)

    def written(self) -> list[str]:
        """Their names."""
        paths = (self.csv, self.parquet, self.curve, self.report)
        return [str(path) for path in paths if path is not None]


def _compared(runs: "list[Evaluated]", radii: Sequence[Fraction]) -> "list[Evaluated]":
    """The runs; all but the first say what they differ from it by."""
    from lipdeploy.report.summary import difference_rows

    first, *others = runs
    differences = [{"against": difference_rows(run, first, radii)} for run in others]
    pairs = zip(others, differences, strict=True)
    return [first, *(replace(run, summary=run.summary | against) for run, against in pairs)]


def _write(
    outputs: _Outputs, runs: "list[Evaluated]", radii: Sequence[Fraction], *, as_json: bool
) -> None:
    """Files first: they must not be lost where nobody reads standard output to its end."""
    from lipdeploy.report import evaluation as terminal
    from lipdeploy.report.attack import write_sandwich
    from lipdeploy.report.corruptions import write_corruptions

    if outputs.curve is not None:
        _write_curve(outputs.curve, runs, radii)
    if outputs.report is not None:
        from lipdeploy.report.page import write_page

        write_page(runs, shlex.join(["lipdeploy", *sys.argv[1:]]), outputs.report)
    summaries = [run.summary for run in runs]
    print_note(*terminal.comparison_notes(summaries))
    if as_json:
        for summary in summaries:
            print_json(summary)
    elif len(runs) > 1:
        terminal.write_side_by_side(summaries)
    else:
        terminal.write_evaluation(summaries[0])
        if "attack" in summaries[0]:
            write_sandwich(summaries[0]["attack"])
    for summary in () if as_json else summaries:
        if "corruptions" in summary:
            write_corruptions(summary["corruptions"], summary["model"] if len(runs) > 1 else "")
    if written := outputs.written():
        print_note(f"wrote {', '.join(written)}")


def _write_curve(path: Path, runs: "list[Evaluated]", radii: Sequence[Fraction]) -> None:
    from lipdeploy import plots

    first = runs[0].summary
    what = f"{first['images']} images of {first['data']}"
    title = f"{first['model']} on {what}" if len(runs) == 1 else what
    named = [(run.summary["model"], run.evaluation) for run in runs]
    plots.write_curve(named, radii, title, first["guarantee"], path)


def _check_file(option: str, path: Path, suffix: str) -> None:
    """Make sure, before the work, that a file can be written and is no other kind of file."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        return  # a device, such as /dev/stdout
    if path.suffix.lower() != suffix:
        raise UsageError(f"{option} {path}: the name must end in {suffix}")
    check_output(path)
