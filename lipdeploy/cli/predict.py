"""`lipdeploy predict`."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import typer

from lipdeploy.bounds import up
from lipdeploy.cli import options
from lipdeploy.cli.values import open_predictor, parse_radius
from lipdeploy.errors import UsageError
from lipdeploy.locate import find_images
from lipdeploy.report.console import print_detail, print_note


def predict(
    images: options.Images,
    certify: options.Certify = False,
    model: options.EngineFile = None,
    guarantee: options.Guarantee = None,
    tight: options.Tight = False,
    min_radius: options.MinRadius = None,
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    batch: options.ImagesPerBatch = 64,
    as_json: options.AsJson = False,
    as_csv: options.AsCsv = False,
    profile: options.ShowProfile = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Classify images, with --certify by how far their pixels can move before the class could.

    The radius is an l2 distance in the network's input, pixels in [0, 1]. Decoding a file into
    pixels is outside the guarantee. Exit status: 1 if an image cannot be read, 3 if one is below
    --min-radius.

    Example: lipdeploy predict photos/ --certify --min-radius 36/255
    """
    from lipdeploy.report.prediction import PredictionRows, prediction_note
    from lipdeploy.report.profile import Profile

    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other; choose one")
    certify = certify or tight or guarantee is not None or min_radius is not None
    limit = None if min_radius is None else _rounded_up(min_radius)
    sources = find_images(images)

    from lipdeploy.predictor import DECODERS

    with open_predictor(
        model,
        certify=certify,
        batch_size=batch,
        guarantee=guarantee,
        tight=tight,
        device=device,
        runtime=runtime,
    ) as predictor:
        print_detail(predictor.description)
        rows = PredictionRows(predictor, limit)
        times = Profile(predictor.times, DECODERS)
        stream = map(rows.row, times.watch(predictor.attempt(sources)))
        _writer(as_json=as_json, as_csv=as_csv, certify=certify)(stream)
        if not (as_json or as_csv):
            print_note(*prediction_note(predictor, rows))
        if profile:
            times.write()
    if rows.failures or rows.abstained:
        raise typer.Exit(1 if rows.failures else 3)


def _writer(
    *, as_json: bool, as_csv: bool, certify: bool
) -> Callable[[Iterable[dict[str, Any]]], None]:
    from lipdeploy.report.prediction import write_csv, write_json, write_table

    if as_json:
        return write_json
    return write_csv if as_csv else partial(write_table, certify=certify)


def _rounded_up(text: str) -> float:
    radius = parse_radius("--min-radius", text)
    return up(float(radius)) if radius else 0.0
