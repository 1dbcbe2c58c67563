"""`lipdeploy evaluate`."""

import time
from pathlib import Path
from typing import Any

import typer

from lipdeploy.cli import options
from lipdeploy.cli.values import engine_of, parse_radii, test_images
from lipdeploy.errors import UsageError
from lipdeploy.files import check_output
from lipdeploy.report.console import print_detail, print_json, print_note


def evaluate(
    model: options.EvaluatedModel,
    dataset: options.TestData,
    radii: options.Radii = None,
    limit: options.Limit = None,
    csv: options.ImageTable = None,
    curve: options.Curve = None,
    data: options.Data = Path("data"),
    guarantee: options.Guarantee = None,
    tight: options.Tight = False,
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    batch: options.ImagesPerBatch = 64,
    as_json: options.AsJson = False,
    attack: options.Attack = False,
    attack_images: options.AttackImages = None,
    attack_seed: options.AttackSeed = 0,
    auto_attack: options.AutoAttack = False,
    explain: options.Explain = None,
    explain_image: options.ExplainImage = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Count right answers, and right answers certified at each radius, on a test set.

    Images that cannot be read count as wrong; exit status 1 if there are any, or if an attack
    contradicts a certificate.

    Example: lipdeploy evaluate runs/cifar10/model.onnx cifar10 --curve curve.png
    """
    from lipdeploy import plots
    from lipdeploy.cli.attack import attack_request, run_attack
    from lipdeploy.evaluation import STANDARD_RADII, Evaluation, outcomes
    from lipdeploy.predictor import Predictor
    from lipdeploy.report import evaluation as report
    from lipdeploy.report.attack import write_sandwich

    counted = parse_radii(radii) if radii else STANDARD_RADII
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1")
    if curve is not None:
        plots.check_matplotlib()
    for option, path, suffix in (("--curve", curve, ".png"), ("--csv", csv, ".csv")):
        if path is not None:
            _check_file(option, path, suffix)
    request = attack_request(
        attack, attack_images, attack_seed, auto_attack, explain, explain_image
    )
    images = test_images(dataset, data)
    images = images if limit is None else images.spread(limit)
    arguments: dict[str, Any] = {
        "guarantee": guarantee,
        "tight": tight,
        "device": device,
        "runtime": runtime,
    }
    with Predictor(engine_of(model), batch_size=batch, compare=True, **arguments) as predictor:
        result = Evaluation(predictor.statements)
        print_detail(predictor.description)
        images = images.in_order_of(predictor.manifest.classes)
        start = time.perf_counter()
        with report.image_table(csv) as write_image:
            for outcome in report.watched(outcomes(predictor, images), len(images)):
                result.add(outcome)
                write_image(outcome)
                report.tell_unreadable(outcome, result.unreadable)
        seconds = time.perf_counter() - start
        summary = report.evaluation_summary(result, predictor, images.name, counted, seconds)
        if request is not None:
            summary["attack"] = run_attack(predictor, images, counted, arguments["device"], request)
    if as_json:
        print_json(summary)
    else:
        report.write_evaluation(summary)
        if request is not None:
            write_sandwich(summary["attack"])
    if curve is not None:
        title = f"{predictor.model} on {result.images} images of {images.name}"
        plots.write_curve(result, counted, title, predictor.guarantee, curve)
    if written := [str(path) for path in (csv, curve) if path is not None]:
        print_note(f"wrote {', '.join(written)}")
    if result.unreadable or summary.get("attack", {}).get("broken_certificates"):
        raise typer.Exit(1)


def _check_file(option: str, path: Path, suffix: str) -> None:
    """Make sure, before the work, that a file can be written and is no other kind of file."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        return  # a device, such as /dev/stdout
    if path.suffix.lower() != suffix:
        raise UsageError(f"{option} {path}: the name must end in {suffix}")
    check_output(path)
