"""Options of `train` beside the network and the schedule; `cli.options` has those."""

from typing import Annotated

import typer

from lipdeploy.cli.options import TRAINING
from lipdeploy.training.options import KEEPS, LOSSES

WATCHING = "Watching and choosing"


def _list_recipes(value: bool) -> None:
    if value:
        from lipdeploy.report.planning import write_recipes
        from lipdeploy.training.distributed import started
        from lipdeploy.training.recipe import load_recipe, recipe_names

        if started().is_main:
            write_recipes([load_recipe(name) for name in recipe_names()])
        raise typer.Exit


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
