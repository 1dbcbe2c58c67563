"""The options of the commands, each with its help text; `cli` puts them together."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from lipdeploy.report.console import Verbosity, set_verbosity

NETWORK = "Network"
TRAINING = "Training"


def _one_of(*values: str) -> Callable[[], list[str]]:
    """What the shell offers after an option; what is accepted is decided where it is used."""
    return lambda: list(values)


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
    str, typer.Option(autocompletion=_one_of("auto", "cpu", "cuda"), help="auto, cpu or cuda.")
]

# train
TrainData = Annotated[
    str,
    typer.Argument(
        autocompletion=_one_of("cifar10", "cifar100"),
        help="cifar10, cifar100, or a folder with train/<class>/* images.",
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the run; by default runs/<dataset>-<time>.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run in --out, with its options; only --lr, --precision and "
        "--accumulate can change.",
    ),
]
Data = Annotated[Path, typer.Option(help="Where cifar10 and cifar100 are, or are downloaded to.")]
Workers = Annotated[int, typer.Option(help="Decoding processes; 0 for one a core.")]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Decode the images of a folder whenever they are needed, instead of holding them; so "
        "it is anyway where they would take more than half of the free memory.",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Side of the network's input; by default the first image's shorter side, at most 64.",
        rich_help_panel=NETWORK,
    ),
]
Depth = Annotated[
    int, typer.Option(help="5, 10, 15, ...: LipConvNet-DEPTH.", rich_help_panel=NETWORK)
]
Width = Annotated[int, typer.Option(help="Channels of the first layer.", rich_help_panel=NETWORK)]
Head = Annotated[
    str,
    typer.Option(
        autocompletion=_one_of("linear", "lln", "mlp"),
        help="linear (orthogonal), lln (unit rows) or mlp (certified by curvature).",
        rich_help_panel=NETWORK,
    ),
]
Padding = Annotated[
    str,
    typer.Option(
        autocompletion=_one_of("circular", "zero"),
        help="circular (cheap to freeze) or, of soc, zero.",
        rich_help_panel=NETWORK,
    ),
]
Layer = Annotated[
    str,
    typer.Option(
        autocompletion=_one_of("soc", "bcop", "cayley", "aol", "sll", "aoc", "bro"),
        help="soc, bcop, cayley, aoc, bro (orthogonal), aol or sll (1-Lipschitz).",
        rich_help_panel=NETWORK,
    ),
]
Activation = Annotated[
    str,
    typer.Option(
        autocompletion=_one_of("maxmin", "householder", "householder2"),
        help="maxmin, or householder (learned reflections) of order 1 or 2.",
        rich_help_panel=NETWORK,
    ),
]
Pooling = Annotated[
    str,
    typer.Option(
        autocompletion=_one_of("max", "projection"),
        help="max of channel pairs, or projection (distance to a learned half-line).",
        rich_help_panel=NETWORK,
    ),
]
Epochs = Annotated[int, typer.Option(help="Passes over the images.", rich_help_panel=TRAINING)]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Images a step; by default 256, fewer for small sets.", rich_help_panel=TRAINING
    ),
]
Accumulate = Annotated[
    int,
    typer.Option(
        help="Compute each step in this many parts, one after the other: the same step in less "
        "memory.",
        rich_help_panel=TRAINING,
    ),
]
LearningRate = Annotated[
    float, typer.Option(help="Peak learning rate (one cycle).", rich_help_panel=TRAINING)
]
Offset = Annotated[
    float,
    typer.Option(
        "--u",
        help="Offset of the loss: the margin asked for, l2 in [0, 1] pixels.",
        rich_help_panel=TRAINING,
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--t",
        help="Temperature of the loss; lower leans to clean accuracy.",
        rich_help_panel=TRAINING,
    ),
]
Curvature = Annotated[
    float,
    typer.Option(help="Weight of the curvature penalty of the mlp head.", rich_help_panel=TRAINING),
]
Validation = Annotated[
    float,
    typer.Option(help="Share of the training images set aside.", rich_help_panel=TRAINING),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel=TRAINING)]
Precision = Annotated[
    str,
    typer.Option(
        autocompletion=_one_of("float32", "bfloat16"),
        help="float32, or bfloat16 for the body.",
        rich_help_panel=TRAINING,
    ),
]

# export
TrainedModel = Annotated[
    Path,
    typer.Argument(help="A trained model.pt, or an ONNX engine to build another engine from."),
]
Engine = Annotated[
    str,
    typer.Option(
        autocompletion=_one_of("onnx", "openvino", "trt"),
        help="onnx, openvino or trt (TensorRT).",
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
        autocompletion=_one_of("auto", "spectral", "fused", "tiled", "dense", "taylor"),
        help="Form of the frozen layers: auto (the fastest of each), spectral, fused, tiled, dense "
        "or taylor.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        autocompletion=_one_of("float16", "float32"),
        help="How operators are stored: float16 (cast exactly) or float32.",
    ),
]

Accumulation = Annotated[
    str,
    typer.Option(
        autocompletion=_one_of("blocked", "same-order", "any-order"),
        help="What the statement program may assume of the order of sums: blocked (nothing; the "
        "graph keeps sums short), same-order (the same for all outputs; faster, tested on the "
        "machine that predicts) or any-order (nothing; fastest, small radii).",
    ),
]

EnginePrecision = Annotated[
    str,
    typer.Option(
        "--precision",
        autocompletion=_one_of("float32", "tf32", "float16", "bfloat16"),
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
        autocompletion=_one_of("program", "network", "no-certified-flip"),
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
        autocompletion=_one_of("auto", "onnxruntime", "openvino", "tensorrt", "torch", "numpy"),
        help="auto (what the engine was exported for), onnxruntime, openvino, tensorrt, torch, or "
        "numpy for the float64 reference.",
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

# evaluate
EvaluatedModels = Annotated[
    list[Path],
    typer.Argument(
        metavar="MODEL...",
        help="Exported engines, or a model.pt, which is frozen as by export; several are compared "
        "image by image.",
    ),
]
TestData = Annotated[
    str,
    typer.Argument(
        autocompletion=_one_of("cifar10", "cifar100"),
        help="cifar10, cifar100, a folder with test/<class>/* images, or a .csv list with the "
        "columns path (relative to it) and label.",
    ),
]
Radii = Annotated[
    list[str] | None,
    typer.Option(
        "--radii",
        help="Radius to count at, as 36/255 or 0.5; several, or several separated by commas. By "
        "default 36/255,72/255,108/255,1.",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Only this many images, at equal distances.")]
ImageTable = Annotated[Path | None, typer.Option("--csv", help="Write a CSV line an image here.")]
ParquetTable = Annotated[
    Path | None, typer.Option("--parquet", help="Write the same lines as a Parquet file here.")
]
Curve = Annotated[
    Path | None, typer.Option(help="Draw certified accuracy against the radius here, as a PNG.")
]
Report = Annotated[
    Path | None,
    typer.Option(
        help="Write a report here, a single HTML file: what is guaranteed, curves, classes, images."
    ),
]
ResumeFolder = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        help="Keep the result of each image in this folder, and go on from what is there: the same "
        "command again after a kill ends with the same numbers. Other artifacts or images than it "
        "was begun with are refused by hash.",
    ),
]

Attack = Annotated[
    bool,
    typer.Option(
        "--attack",
        help="Attack the right answers, too, and show certified accuracy, accuracy under attack "
        "and what lies between; every adversarial example is confirmed by the engine. Exit status "
        "1 if one contradicts a certificate.",
    ),
]
AttackImages = Annotated[
    int | None,
    typer.Option(
        help="Attack only this many of the images, at equal distances; by default all of them."
    ),
]
AttackSeed = Annotated[int, typer.Option(help="Seed of the attacks' random starts.")]
AutoAttack = Annotated[
    bool,
    typer.Option(
        "--auto-attack",
        help="Run AutoAttack, too, at each radius on every image not broken there, certified or "
        "not: about 7,000 evaluations of the network each, so use --attack-images. Implies "
        "--attack; needs pyautoattack.",
    ),
]
Explain = Annotated[
    Path | None,
    typer.Option(
        help="Folder for pictures of what the attacks found (images beside their adversarial "
        "examples, both curves) and a table of all attacked images; implies --attack.",
    ),
]
ExplainImage = Annotated[
    list[str] | None,
    typer.Option(
        help="End of the path of an image to draw; several. By default those with the largest and "
        "smallest radius and the smallest ratio of perturbation to radius.",
    ),
]

# benchmark
Artifacts = Annotated[
    list[Path],
    typer.Argument(help="Exported engines, or a model.pt, which is frozen as by export."),
]
BenchmarkData = Annotated[
    str | None,
    typer.Option(
        "--data",
        autocompletion=_one_of("cifar10", "cifar100"),
        help="Compare also the answers on a test set: cifar10, cifar100 (in ./data, or downloaded "
        "to it), or a folder with test/<class>/* images.",
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
