"""`lipdeploy inspect`."""

from lipdeploy.cli import options
from lipdeploy.cli.values import check_no_folder, check_no_image, holds_tensors
from lipdeploy.errors import ModelError
from lipdeploy.report.console import print_json


def inspect(
    artifact: options.Artifact,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Show what is in an engine, a trained model or a checkpoint: classes, layers, bounds, hashes.

    Example: lipdeploy inspect runs/cifar10/model.onnx
    """
    from lipdeploy.report.inspection import write_inspection

    check_no_folder(artifact, "model.onnx", "model.pt")
    if not artifact.is_file():
        raise ModelError(
            f"{artifact}: no such file; expected an engine, a model.pt or a checkpoint.pt"
        )
    check_no_image(artifact)
    if holds_tensors(artifact):
        from lipdeploy.training.inspection import inspect_training_file

        facts = inspect_training_file(artifact)
    else:
        from lipdeploy.exporters.engine_file import read_engine
        from lipdeploy.inspection import inspect_engine

        facts = inspect_engine(read_engine(artifact))
    if as_json:
        print_json(facts)
    else:
        write_inspection(facts)
