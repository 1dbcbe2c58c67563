"""`lipdeploy export`."""

from pathlib import Path
from typing import Any

from lipdeploy.cli import options
from lipdeploy.cli.values import check_no_folder, check_no_image, holds_tensors, parse_radius
from lipdeploy.errors import ModelError
from lipdeploy.exporters.options import SUFFIXES, ExportOptions, check_files, is_engine
from lipdeploy.report.console import print_line, print_note, stages


def export(
    model: options.TrainedModel,
    engine: options.Engine = "onnx",
    output: options.Output = None,
    form: options.Form = "auto",
    precision: options.EnginePrecision = "float32",
    weights: options.Weights = "float16",
    accumulation: options.Accumulation = "blocked",
    longest_sum: options.LongestSum = None,
    batch: options.TargetBatch = 64,
    max_batch: options.MaxBatch = 256,
    portable: options.Portable = False,
    tune: options.Tune = False,
    max_rounding_loss: options.MaxRoundingLoss = None,
    triton: options.Triton = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Freeze a trained model into one engine file, prove its bounds, check it against float64.

    Example: lipdeploy export runs/cifar10/model.pt --engine onnx
    """
    chosen: dict[str, Any] = {
        "engine": engine,
        "form": form,
        "precision": precision,
        "weights": weights,
    }
    chosen |= {"accumulation": accumulation, "longest_sum": longest_sum}
    chosen |= {"batch": batch, "max_batch": max_batch, "portable": portable, "tune": tune}
    chosen["triton"] = triton
    if max_rounding_loss is not None:
        chosen["max_rounding_loss"] = float(parse_radius("--max-rounding-loss", max_rounding_loss))
    export_options = ExportOptions(**chosen)
    _check_model(model, export_options.kind)
    output = output or model.with_suffix(SUFFIXES[export_options.kind])
    check_files(model, output, export_options)

    # Only now, since it imports what takes seconds: a wrong option is told at once.
    from lipdeploy.exporters.export import export_model
    from lipdeploy.report.export import export_summary, precision_note

    with stages() as stage:
        exported = export_model(
            model, output, export_options, stage, lambda cost: print_note(*precision_note(cost))
        )
    export_summary(exported)
    if triton is not None:
        print_line(f"Triton: {triton / output.stem}; see docs/engines.md")


def _check_model(model: Path, kind: str) -> None:
    """Raise ModelError for what is no trained model, and says so by its name or first bytes."""
    check_no_image(model)
    check_no_folder(model, "model.pt")
    if holds_tensors(model):
        return
    if not is_engine(model) and model.is_file():
        raise ModelError(
            f"{model}: not a trained model; give the model.pt that 'lipdeploy train' wrote, or, "
            "with --engine openvino or trt, an ONNX engine (.onnx)"
        )
    if kind == "onnx" and is_engine(model):
        from lipdeploy.exporters.engine_file import read_engine

        read_engine(model)  # to predict with it is advice for a whole one only
        raise ModelError(
            f"{model}: an engine already; type 'lipdeploy predict IMAGE --model {model}', or give "
            "the model.pt that 'lipdeploy train' wrote"
        )
