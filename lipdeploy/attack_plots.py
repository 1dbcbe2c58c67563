"""The sandwich as a picture, and single images with what changes them."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.decimals import lower, upper
from lipdeploy.files import write_atomically
from lipdeploy.sandwich import Adversarial, Attacked, Sandwich

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CERTIFIED, UNBROKEN = "#1f5fa8", "#b8501c"
FACTORS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""By which differences are magnified."""


def write_sandwich_curve(
    sandwich: Sandwich, radii: Sequence[Fraction], title: str, path: Path
) -> None:
    """Write a PNG: shares certified and unbroken by radius in 1/255, the unknown between them.

    Raises:
        OutputError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    steps, certified, unbroken = sandwich.curves()
    low, high = ([100 * share for share in shares] for shares in (certified, unbroken))
    # Where the engine may flip in the ball, there can be fewer unbroken images than certified ones.
    top = np.maximum(low, high)
    axes.fill_between(steps, low, top, step="post", color="grey", alpha=0.2, label="undecided")
    axes.step(steps, high, where="post", color=UNBROKEN, label="right, not broken by any attack")
    axes.step(steps, low, where="post", color=CERTIFIED, label="right and certified")
    for radius in radii:
        axes.axvline(float(255 * radius), color="grey", linestyle=":", linewidth=1)
    axes.set(
        xlabel="radius, l2 in 1/255 of the pixel range",
        ylabel="share of images, %",
        xlim=(0, None),
        ylim=(0, 100),
    )
    axes.set_title(title, wrap=True, fontsize="medium", parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    _save(figure, title, path)


def write_look(item: Attacked, reason: str, classes: Sequence[str], path: Path) -> None:
    """Write a PNG of one image: as it is, moved by its certified radius, and adversarial.

    Below the two moved ones stand their differences from the image, magnified by one factor, grey
    for no change. Both are moved in the same direction, so that the pictures differ in length only.

    Args:
        item: with a certificate and a perturbation.
        reason: why it was chosen.
        classes: names in the order of the logits.
        path: the file.

    Raises:
        OutputError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    if item.pixels is None or item.nearest is None:
        raise ValueError("an image without an adversarial example has nothing to show")
    moved = item.nearest.pixels.astype(np.float64) - item.pixels
    inside = moved * (item.radius_255 / item.nearest.distance_255)
    factor = magnification(moved)
    radius, distance = lower(item.radius_255, 2), upper(item.nearest.distance_255, 2)
    panels: dict[tuple[int, int], tuple[str, NDArray[np.float64]]] = {
        (0, 0): ("the image", item.pixels.astype(np.float64)),
        (0, 1): (f"moved by its certified radius,\n{radius}/255", item.pixels + inside),
        (0, 2): (f"nearest other class found,\n{distance}/255", item.pixels + moved),
        (1, 1): (f"change, magnified {factor} times", 128 + factor * inside),
        (1, 2): (f"change, magnified {factor} times", 128 + factor * moved),
    }
    figure = Figure(figsize=(8.4, 6.2), dpi=130, layout="constrained")
    grid = figure.subplots(2, 3)
    for (row, column), (title, pixels) in panels.items():
        _draw(grid[row, column], title, pixels)
    grid[1, 0].axis("off")
    text = caption(item, item.nearest, reason, classes)
    grid[1, 0].text(0, 0.95, text, va="top", wrap=True, fontsize="small", parse_math=False)
    _save(figure, text.replace("\n", " "), path)


def magnification(moved: NDArray[np.float64]) -> int:
    """The largest of `FACTORS` that keeps a change, in pixels of 0 ... 255, between the ends."""
    largest = float(np.abs(moved).max(initial=0.0))
    return max(factor for factor in FACTORS if factor * largest <= 127 or factor == 1)


def caption(item: Attacked, nearest: Adversarial, reason: str, classes: Sequence[str]) -> str:
    """What the pictures of an image show, in words."""
    return (
        f"{'/'.join(Path(item.result.path).parts[-2:])} ({reason})\n"
        f"class: {item.true_class}\n"
        f"certified: {lower(item.radius_255, 2)}/255\n"
        f"nearest other class found:\n{classes[nearest.class_index]}, at "
        f"{upper(nearest.distance_255, 2)}/255\n"
        f"by {nearest.attack}\n"
        f"ratio: {lower(item.ratio or 0, 3)}\n"
        "(l2 at the network's input,\nin 1/255 of the pixel range)"
    )


def _draw(axes: Any, title: str, pixels: NDArray[np.float64]) -> None:  # noqa: ANN401
    picture = np.clip(np.rint(pixels.transpose(1, 2, 0)), 0, 255).astype(np.uint8)
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize="small")
    axes.axis("off")


def _save(figure: "Figure", title: str, path: Path) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Title": title})
    write_atomically(stream.getvalue(), path)
