"""`lipdeploy verify`."""

from pathlib import Path
from typing import Annotated

import typer

from lipdeploy.cli import options
from lipdeploy.cli.values import check_no_folder, holds_tensors
from lipdeploy.errors import ModelError
from lipdeploy.report.console import print_json


def verify(
    artifact: Annotated[Path, typer.Argument(help="An engine written by export.")],
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Prove an engine's bounds again from its weights, and check that its graph is theirs.

    Two verdicts, line by line. Integrity: the file is what export wrote. Soundness: whoever wrote
    it, its bounds are true. Exit status 1 if either fails.

    Example: lipdeploy verify runs/cifar10/model.onnx
    """
    from lipdeploy.exporters.verify import verify as checks
    from lipdeploy.report.verification import Verdicts, watched, write_check, write_verdicts

    if holds_tensors(artifact):
        raise ModelError(
            f"{artifact}: a trained model or checkpoint, not an engine; run 'lipdeploy export' on "
            "it and verify the file that it writes"
        )
    check_no_folder(artifact, "model.onnx")
    verdicts = Verdicts(str(artifact))
    for check in watched(checks(artifact)):
        verdicts.add(check)
        if not as_json:
            write_check(check)
    if as_json:
        print_json(verdicts.summary())
    else:
        write_verdicts(verdicts)
    if not verdicts.passed:
        raise typer.Exit(1)
