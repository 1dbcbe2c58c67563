"""`lipdeploy check-pair`."""

from typing import Annotated

import typer

from lipdeploy.cli import options
from lipdeploy.cli.values import open_predictor
from lipdeploy.report.console import print_detail, print_json

NOT_COVERED = 3

ImageFile = Annotated[
    str, typer.Argument(help="An image, or an input that --attack has saved (.npy).")
]


def check_pair(
    first: ImageFile,
    second: ImageFile,
    model: options.EngineFile = None,
    guarantee: options.Guarantee = None,
    tight: options.Tight = False,
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Say whether the certificate of the first image covers the second.

    Distances are compared exactly. Exit status: 0 if it does, 3 if it does not, 1 if an image
    cannot be read, or if the answers contradict the guarantee, which should never happen.

    Example: lipdeploy check-pair original.png changed.png
    """
    from lipdeploy import pairs
    from lipdeploy.report.pairs import pair_summary, write_pair

    with open_predictor(
        model, guarantee=guarantee, tight=tight, device=device, runtime=runtime
    ) as predictor:
        print_detail(predictor.description)
        pair = pairs.check_pair(predictor, first, second)
        summary = pair_summary(pair, predictor)
    if as_json:
        print_json(summary)
    else:
        write_pair(summary)
    if pair.contradicts:
        raise typer.Exit(1)
    if not pair.is_covered and not pair.is_covered_in_file:
        raise typer.Exit(NOT_COVERED)
