"""What a training run could be: the recipes, and what one would take."""

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lipdeploy.report.console import plain_table, print_line, print_table

if TYPE_CHECKING:
    from lipdeploy.training.recipe import Recipe
    from lipdeploy.training.rehearsal import Rehearsal

COLUMNS = 80
"""Width of the list of recipes, which no terminal has to break."""

NOT_MEASURED = "not measured yet"
SHOWN = {
    "learning_rate": "lr",
    "loss": "loss",
    "offset": "u",
    "temperature": "t",
    "beta": "beta",
    "certificate": "cr",
    "ema": "ema",
    "epochs": "epochs",
    "precision": "",
}
"""Training options that tell recipes apart, and what stands before them."""


def write_recipes(recipes: Iterable["Recipe"]) -> None:
    """Some lines a recipe: what for, the network, how, and what it reached on what in what time."""
    found = list(recipes)
    indent = " " * (2 + max(len(recipe.name) for recipe in found))
    for recipe in found:
        first, *more = _about(recipe)
        print_line(*_wrapped(first, recipe.name.ljust(len(indent)), indent))
        for text in more:
            print_line(*_wrapped(text, indent, indent))
    print_line("", "lipdeploy train DATA --recipe NAME; options given beside it win.")


def _wrapped(text: str, start: str, indent: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, initial_indent=start, subsequent_indent=indent)


def _about(recipe: "Recipe") -> list[str]:
    network = recipe.architecture
    return [
        recipe.purpose,
        f"LipConvNet-{network.depth}, width {network.width}, {network.head}",
        ", ".join(_chosen(recipe.training)),
        *_reached(recipe),
    ]


def _chosen(training: dict[str, Any]) -> list[str]:
    return [f"{word} {training[name]}".strip() for name, word in SHOWN.items() if name in training]


def _reached(recipe: "Recipe") -> list[str]:
    held = recipe.reached
    if held is None:
        return [NOT_MEASURED]
    shares = (held.clean, held.certified_36, held.certified_72, held.certified_108)
    numbers = " / ".join(f"{share:.2f}" for share in shares)
    return [
        f"{numbers} % (clean / 36 / 72 / 108, in 255ths)",
        f"of {held.on},",
        f"after {held.time}",
        f"({held.printed_in})",
    ]


def write_rehearsal(rehearsal: "Rehearsal", frozen_macs: dict[str, int]) -> None:
    """A line a layer, then images, steps, time and memory.

    Args:
        rehearsal: what was measured.
        frozen_macs: multiplications an image of the frozen layers, by name.
    """
    print_table(_layer_table(rehearsal, frozen_macs))
    training, validation = rehearsal.images
    epoch = rehearsal.steps * rehearsal.step_seconds
    options = rehearsal.options
    memory = ", ".join(f"{name} {_mebibytes(size)}" for name, size in rehearsal.memory.items())
    print_line(
        f"images   {training} to train on, {validation} set aside",
        f"steps    {rehearsal.steps} an epoch of {rehearsal.batch_size} images; {options.epochs} "
        f"epochs; {options.precision} on {options.device}",
        f"time     {1000 * rehearsal.step_seconds:.0f} ms a step on this machine now, so about "
        f"{_duration(epoch)} an epoch, {_duration(options.epochs * epoch)} in all, without "
        "validation and checkpoints",
        f"memory   {_mebibytes(sum(rehearsal.memory.values()))}: {memory}; torch and what a step "
        "needs for a moment come on top",
    )


def _layer_table(rehearsal: "Rehearsal", frozen_macs: dict[str, int]) -> Table:
    columns = (">parameters", ">MMACs/image, forward", ">frozen")
    table = plain_table("layer", "kind", "output", *columns)
    for layer in rehearsal.layers:
        frozen = frozen_macs.get(layer.name)
        table.add_row(
            layer.name,
            layer.kind,
            " x ".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            _millions(layer.macs),
            "" if frozen is None else _millions(frozen),
        )
    parameters = sum(layer.parameters for layer in rehearsal.layers)
    macs = sum(layer.macs for layer in rehearsal.layers)
    frozen_total = _millions(sum(frozen_macs.values()))
    table.add_row("all", "", "", f"{parameters:,}", _millions(macs), frozen_total)
    return table


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}" if count else ""


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
