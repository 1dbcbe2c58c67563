"""`lipdeploy inspect`."""

from lipdeploy.cli import options
from lipdeploy.cli.values import holds_tensors
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

    if holds_tensors(artifact):
        from lipdeploy.training.inspection import inspect_training_file

        facts = inspect_training_file(artifact)
    else:
        from lipdeploy.exporters.onnx_file import read_onnx
        from lipdeploy.inspection import inspect_engine

        facts = inspect_engine(read_onnx(artifact))
    if as_json:
        print_json(facts)
    else:
        write_inspection(facts)
