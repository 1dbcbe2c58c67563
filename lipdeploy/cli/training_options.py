"""Arguments and options of `lipdeploy train`."""

from pathlib import Path
from typing import Annotated

import typer

from lipdeploy.cli.options import one_of
from lipdeploy.training.options import KEEPS, LOSSES

NETWORK = "Network"
TRAINING = "Training"
WATCHING = "Watching and choosing"


def _list_recipes(value: bool) -> None:
    if value:
        from lipdeploy.report.planning import write_recipes
        from lipdeploy.training.launched import launched
        from lipdeploy.training.recipe import load_recipe, recipe_names

        rank, *_ = launched()
        if rank == 0:  # of several processes the main one speaks
            write_recipes([load_recipe(name) for name in recipe_names()])
        raise typer.Exit


TrainData = Annotated[
    str,
    typer.Argument(
        autocompletion=one_of("cifar10", "cifar100"),
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
        "--accumulate can change; --compile is given again.",
    ),
]
Workers = Annotated[int, typer.Option(help="Decoding processes; 0 for one a core.")]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Decode the images of a folder whenever they are needed, instead of holding them; so "
        "it is anyway where they would take more than half of the free memory.",
    ),
]
Compiled = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the training passes (torch.compile): the first step takes a few "
        "minutes, the others may take less. Needs a C++ compiler; not with --dry-run.",
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
        autocompletion=one_of("linear", "lln", "mlp"),
        help="linear (orthogonal), lln (unit rows) or mlp (certified by curvature).",
        rich_help_panel=NETWORK,
    ),
]
Padding = Annotated[
    str,
    typer.Option(
        autocompletion=one_of("circular", "zero"),
        help="circular (cheap to freeze) or, of soc, zero.",
        rich_help_panel=NETWORK,
    ),
]
Layer = Annotated[
    str,
    typer.Option(
        autocompletion=one_of("soc", "bcop", "cayley", "aol", "sll", "aoc", "bro"),
        help="soc, bcop, cayley, aoc, bro (orthogonal), aol or sll (1-Lipschitz).",
        rich_help_panel=NETWORK,
    ),
]
Activation = Annotated[
    str,
    typer.Option(
        autocompletion=one_of("maxmin", "householder", "householder2"),
        help="maxmin, or householder (learned reflections) of order 1 or 2.",
        rich_help_panel=NETWORK,
    ),
]
Pooling = Annotated[
    str,
    typer.Option(
        autocompletion=one_of("max", "projection"),
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
        autocompletion=one_of("float32", "bfloat16"),
        help="float32, or bfloat16 for the body.",
        rich_help_panel=TRAINING,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE.toml",
        help="Take network and training options from a recipe; options given beside it win.",
        show_default=False,
    ),
]
ListRecipes = Annotated[
    bool,
    typer.Option(
        "--list-recipes",
        callback=_list_recipes,
        is_eager=True,
        help="Show the recipes and what they reached, and end.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show layers, multiplications, time and memory of the run, and end; writes nothing.",
    ),
]
Loss = Annotated[
    str,
    typer.Option(
        autocompletion=lambda: list(LOSSES),
        help="offset (cross-entropy with offset and temperature) or annealed (logit annealing).",
        rich_help_panel=TRAINING,
    ),
]
Beta = Annotated[
    float,
    typer.Option(
        help="Exponent of --loss annealed: how soon an image with a margin is left alone.",
        rich_help_panel=TRAINING,
    ),
]
Certificate = Annotated[
    float,
    typer.Option(
        "--cr",
        help="Weight of certificate regularisation: takes so much of the mean certified margin "
        "off the loss.",
        rich_help_panel=TRAINING,
    ),
]
Ema = Annotated[
    float,
    typer.Option(
        help="Decay a step of averaged weights, such as 0.999, which model.pt then holds; 0 for "
        "none.",
        rich_help_panel=TRAINING,
    ),
]
Keep = Annotated[
    str,
    typer.Option(
        autocompletion=lambda: list(KEEPS),
        help="What model.pt holds: the last epoch, or the best by the validation images (certified "
        "accuracy at 36/255 with --certify-every, else accuracy).",
        rich_help_panel=WATCHING,
    ),
]
CertifyEvery = Annotated[
    int,
    typer.Option(
        help="Certify up to 500 validation images through the frozen network every so many epochs; "
        "0 for the last one only.",
        rich_help_panel=WATCHING,
    ),
]
Tensorboard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Write the metrics for TensorBoard, too, into the run's folder tensorboard.",
        rich_help_panel=WATCHING,
    ),
]
