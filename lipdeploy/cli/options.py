"""The options of the commands, each with its help text; `cli` puts them together."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from lipdeploy.report.console import Verbosity, set_verbosity


def one_of(*values: str) -> Callable[[], list[str]]:
    """What the shell offers after an option; what is accepted is decided where it is used."""
    return lambda: list(values)


def _first_name(aliases: dict[str, str]) -> Callable[[str], str]:
    """Takes other names of a value, too."""
    return lambda value: aliases.get(value, value)


def _quiet(value: bool) -> None:
    if value:
        set_verbosity(Verbosity.QUIET)


def _verbose(value: bool) -> None:
    if value:
        set_verbosity(Verbosity.VERBOSE)


# every command
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_quiet, help="Show results and errors only."),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", callback=_verbose, help="Show also what is done on the way."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
Device = Annotated[
    str, typer.Option(autocompletion=one_of("auto", "cpu", "cuda"), help="auto, cpu or cuda.")
]

Data = Annotated[Path, typer.Option(help="Where cifar10 and cifar100 are, or are downloaded to.")]

# export
TrainedModel = Annotated[
    Path,
    typer.Argument(help="A trained model.pt, or an ONNX engine to build another engine from."),
]
Engine = Annotated[
    str,
    typer.Option(
        autocompletion=one_of("onnx", "openvino", "trt"),
        callback=_first_name({"tensorrt": "trt", "onnxruntime": "onnx"}),
        help="onnx, openvino or trt (TensorRT); also by the names of --runtime.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="The file; by default model.onnx, model.xml (openvino) or model.engine (trt) beside "
        "the model.",
    ),
]
Form = Annotated[
    str,
    typer.Option(
        autocompletion=one_of("auto", "spectral", "fused", "tiled", "dense", "taylor"),
        help="Form of the frozen layers: auto (the fastest of each), spectral, fused, tiled, dense "
        "or taylor.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        autocompletion=one_of("float16", "float32"),
        help="How operators are stored: float16 (cast exactly) or float32.",
    ),
]

Accumulation = Annotated[
    str,
    typer.Option(
        autocompletion=one_of("blocked", "same-order", "any-order"),
        help="What the statement program may assume of the order of sums: blocked (nothing; the "
        "graph keeps sums short), same-order (the same for all outputs; faster, tested on the "
        "machine that predicts) or any-order (nothing; fastest, small radii).",
    ),
]

EnginePrecision = Annotated[
    str,
    typer.Option(
        "--precision",
        autocompletion=one_of("float32", "tf32", "float16", "bfloat16"),
        help="What the linear layers compute in: float32, or for GPUs tf32, float16 or bfloat16, "
        "with radii as much smaller as the rounding is larger.",
    ),
]
MaxBatch = Annotated[
    int, typer.Option(help="Most images of one call of a TensorRT engine; more are cut in pieces.")
]
Portable = Annotated[
    bool,
    typer.Option(
        "--portable", help="A TensorRT engine for other GPUs and versions, too, if slower."
    ),
]
Triton = Annotated[
    Path | None,
    typer.Option(
        help="Write the engine into this model repository of Triton Inference Server, too.",
    ),
]
LongestSum = Annotated[
    int | None,
    typer.Option(
        help="Most terms of a sum of the graph: fewer are more precise, more are faster. By "
        "default 16 for blocked, 512 for same-order, any number for any-order; with "
        "--max-rounding-loss as many as that allows.",
        show_default=False,
    ),
]

TargetBatch = Annotated[
    int,
    typer.Option("--batch", help="Images at a time that the engine is made fast for."),
]
Tune = Annotated[
    bool,
    typer.Option(
        "--tune", help="Measure the forms of each layer on this machine, and remember the times."
    ),
]
MaxRoundingLoss = Annotated[
    str | None,
    typer.Option(
        help="Largest radius that rounding of the features may cost the statement program on the "
        "inputs of the check, such as 1/255; sums are as long as that allows, and more precise "
        "forms are taken where they are needed."
    ),
]

# predict
Images = Annotated[list[str], typer.Argument(help="Images, directories or glob patterns.")]
Certify = Annotated[
    bool, typer.Option("--certify", help="Return a guaranteed l2 radius for each image.")
]
EngineFile = Annotated[
    Path | None,
    typer.Option(
        "--model",
        help="An exported engine; by default $LIPDEPLOY_MODEL, else the newest under ./runs, else "
        "the bundled one.",
    ),
]
Guarantee = Annotated[
    str | None,
    typer.Option(
        autocompletion=one_of("program", "network", "no-certified-flip"),
        help="Statement to certify: program (what the engine prints, rounding included), network "
        "(the exact network) or no-certified-flip; by default program where the engine's "
        "arithmetic has bounds. Implies certificates.",
    ),
]
Tight = Annotated[
    bool,
    typer.Option(
        "--tight",
        help="Take longer to prove larger radii (mlp heads); implies certificates, whose time is "
        "printed.",
    ),
]
MinRadius = Annotated[
    str | None,
    typer.Option(
        help="Abstain where the radius at the network's input is below this, such as 36/255; "
        "implies --certify."
    ),
]
Runtime = Annotated[
    str,
    typer.Option(
        autocompletion=one_of("auto", "onnxruntime", "openvino", "tensorrt", "torch", "numpy"),
        callback=_first_name({"trt": "tensorrt", "onnx": "onnxruntime"}),
        help="auto (what the engine was exported for), onnxruntime (or onnx), openvino, tensorrt "
        "(or trt), torch, or numpy for the float64 reference.",
    ),
]
ImagesPerBatch = Annotated[int, typer.Option("--batch", help="Images a batch.")]
ShowProfile = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="At the end print images a second and the time of each stage, on standard error.",
    ),
]
AsCsv = Annotated[bool, typer.Option("--csv", help="CSV on standard output.")]

# benchmark
Artifacts = Annotated[
    list[Path],
    typer.Argument(help="Exported engines, or a model.pt, which is frozen as by export."),
]
BenchmarkData = Annotated[
    str | None,
    typer.Option(
        "--data",
        autocompletion=one_of("cifar10", "cifar100"),
        help="Compare also the answers on a test set: cifar10, cifar100 (in ./data, or downloaded "
        "to it), a folder with test/<class>/* images, or what else evaluate takes.",
    ),
]
BenchmarkRadii = Annotated[
    list[str] | None,
    typer.Option(
        "--radii",
        help="With --data: radius to count certified answers at, as in evaluate. By default "
        "36/255.",
    ),
]
BenchmarkLimit = Annotated[
    int | None, typer.Option(help="With --data: only this many images, at equal distances.")
]
BatchSizes = Annotated[
    str, typer.Option("--batch", help="Images a call; several, separated by commas.")
]
Seconds = Annotated[
    float, typer.Option(help="Time of measuring for each line, without certificates and with them.")
]

# inspect
Artifact = Annotated[Path, typer.Argument(help="An engine, a model.pt or a checkpoint.pt.")]
