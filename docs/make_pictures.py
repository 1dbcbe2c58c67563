"""Draws the pictures of docs/radius.md from the bundled model and one bundled image: `make docs`.

python docs/make_pictures.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from lipdeploy import Predictor
from lipdeploy.attack_plots import magnification
from lipdeploy.attacks.gradients import Model, differentiable
from lipdeploy.attacks.searches import minimal_norm
from lipdeploy.decimals import lower, upper
from lipdeploy.images import network_input

Array = NDArray[np.float64]

DOCS = Path(__file__).parent
SAMPLES = DOCS.parent / "samples"
IMAGE = "cat-0001.jpg"
SEED = 0
SEARCH_STEPS = 30
"""Gradients of a search for the nearest image of another class."""
INSIDE = 0.999
"""How long the drawn changes are, by the certified radius: the promise is about nearer images."""
BATCH = 256


@dataclass(frozen=True, eq=False)
class Subject:
    """The image that is drawn, and what the model says of it. Lengths are l2, in 1/255.

    Attributes:
        predictor: with the bundled model.
        pixels: shape (3, n, n), 0 ... 255.
        label: position of its class.
        radius: certified, statement *program*.
        nearest: the nearest image of another class that was found, shape (3, n, n).
        second: the nearest image of a class that is neither of the two.
    """

    predictor: Predictor
    pixels: Array
    label: int
    radius: float
    nearest: Array
    second: Array

    @property
    def distance(self) -> float:
        """From the image to the nearest one of another class that was found."""
        return float(np.linalg.norm(self.nearest - self.pixels))

    def name(self, label: int) -> str:
        """Of a class."""
        return self.predictor.manifest.classes[label]


def read_subject(predictor: Predictor, path: Path) -> Subject:
    """Classify, certify and attack one image."""
    (prediction,) = predictor(path)
    assert prediction.certificate is not None
    pixels = network_input(path, predictor.network.image_size).pixels.astype(np.float64)
    model, _ = differentiable(predictor.network, predictor.manifest, "cpu")
    label = prediction.class_index
    nearest = search(model, pixels, label)
    rival = int(classes(predictor, nearest[None])[0])
    second = search(without(model, rival), pixels, label)
    return Subject(predictor, pixels, label, prediction.certificate.radius_255, nearest, second)


def without(model: Model, label: int) -> Model:
    """The model without one of its classes."""

    def others(images: torch.Tensor) -> torch.Tensor:
        logits = model(images)
        return logits.index_fill(1, torch.tensor([label]), -torch.inf)

    return others


def search(model: Model, pixels: Array, label: int) -> Array:
    """The nearest image of another class that Fast Minimum-Norm finds, shape (3, n, n)."""
    image = torch.tensor(pixels[None] / 255, dtype=torch.float32)
    found = minimal_norm(model, image, torch.tensor([label]), SEARCH_STEPS)
    return 255 * found[0].double().numpy()


def logits(predictor: Predictor, pixels: Array) -> Array:
    """What the engine returns for images of shape (count, 3, n, n), a batch at a time."""
    parts = np.split(pixels.astype(np.float32), range(BATCH, len(pixels), BATCH))
    return np.concatenate([predictor.runtime.run(part)[1] for part in parts])


def classes(predictor: Predictor, pixels: Array) -> NDArray[np.int64]:
    """The classes that the engine prints, shape (count,)."""
    return logits(predictor, pixels).argmax(axis=1)


def unit(vector: Array) -> Array:
    """The vector with length 1."""
    return vector / np.linalg.norm(vector)


def plane(subject: Subject) -> tuple[Array, Array]:
    """Two orthogonal directions of length 1: towards `nearest`, and on towards `second`."""
    first = unit(subject.nearest - subject.pixels)
    second = subject.second - subject.pixels
    return first, unit(second - np.vdot(first, second) * first)


def slice_logits(subject: Subject, axis: Array) -> Array:
    """Logits on the plane through the image, shape (classes, second direction, first one)."""
    first, second = plane(subject)
    grid = [subject.pixels + x * first + y * second for y in axis for x in axis]
    found = logits(subject.predictor, np.stack(grid))
    return found.T.reshape(-1, len(axis), len(axis))


def leads(found: Array) -> Array:
    """How far each class leads all others, negative where it does not; shape as the logits."""
    others = np.repeat(found[None], len(found), axis=0)
    others[np.arange(len(found)), np.arange(len(found))] = -np.inf
    return found - others.max(axis=1)


def rooms(subject: Subject, pixels: Array) -> Array:
    """The smallest (z_y - z_j) / (L ||w_y - w_j||) over the rivals j, shape (count,), in 1/255.

    In float64, y the class of the subject. It changes by at most as much as its image moves, and
    where it is positive the class is y.
    """
    network, label = subject.predictor.network, subject.label
    found = network.head.logits(network.features(pixels))
    gaps = np.delete(found[:, [label]] - found, label, axis=1)
    distances = np.delete(network.head.distances_upper[label], label)
    return (gaps / distances).min(axis=1) / subject.predictor.manifest.lipschitz_upper


def changes(subject: Subject) -> dict[str, Array]:
    """Changes of the image, `INSIDE` of the certified radius long each, by what they are.

    The changed images have values from 0 to 255, too: dark values rise, bright ones fall.
    """
    size, length = subject.pixels.size, INSIDE * subject.radius
    shape = subject.pixels.shape
    signs = np.where(subject.pixels < 128, 1.0, -1.0)
    place = 0, shape[1] // 2, shape[2] // 2
    point = np.zeros(shape)
    point[place] = length * signs[place]
    each = length / size**0.5
    return {
        f"{size:,} numbers\nby {lower(each, 2)} steps": each * signs,
        f"one number\nby {lower(length, 1)} steps": point,
        "towards the\nattack's image": unit(subject.nearest - subject.pixels) * length,
    }


def draw_slice(subject: Subject, steps: int = 81) -> Figure:
    """Classes on a plane through the image, and the certified ball."""
    reach = 1.4 * float(np.linalg.norm(subject.second - subject.pixels))
    axis = np.linspace(-reach, reach, steps)
    lead = leads(slice_logits(subject, axis))
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for label in np.flatnonzero(lead.max(axis=(1, 2)) > 0):
        draw_class(axes, axis, lead[label], mpl.colormaps["Pastel1"](label), subject.name(label))
    radius, distance = lower(subject.radius, 1), upper(subject.distance, 1)
    axes.add_patch(Circle((0, 0), subject.radius, fill=False, linewidth=2, color="black"))
    axes.plot(0, 0, "ko", label=IMAGE)
    axes.plot([], [], "k-", linewidth=2, label=f"certified radius, {radius}/255")
    axes.plot(subject.distance, 0, "kx", markersize=9, label=f"attack found, {distance}/255")
    axes.set(
        xlabel="towards the attack's image, in 1/255",
        ylabel="towards a third class, in 1/255",
        aspect="equal",
    )
    axes.legend(loc="lower left")
    return figure


def draw_class(axes: Any, axis: Array, lead: Array, colour: Any, name: str) -> None:  # noqa: ANN401
    """The part of the plane where one class leads, with its name where it leads most."""
    axes.contourf(axis, axis, lead, levels=[0, lead.max()], colors=[colour])
    row, column = np.unravel_index(lead.argmax(), lead.shape)
    inside = np.clip([axis[column], axis[row]], 0.85 * axis[0], 0.85 * axis[-1])
    axes.text(*inside, name, ha="center", weight="bold")


def draw_margins(subject: Subject, others: int = 20, steps: int = 61) -> Figure:
    """What is left of the margin on the way, and the line that it cannot fall below."""
    way = np.linspace(0, 1.3 * subject.distance, steps)
    shape = (others, *subject.pixels.shape)
    directions = np.random.default_rng(SEED).normal(size=shape)
    figure = Figure(figsize=(5.8, 4), layout="constrained")
    axes = figure.add_subplot()
    for index, direction in enumerate(directions):
        label = f"{others} random directions" if index == 0 else None
        axes.plot(way, along(subject, direction, way), color="grey", alpha=0.5, label=label)
    nearest = along(subject, subject.nearest - subject.pixels, way)
    axes.plot(way, nearest, color="#b8501c", label="towards the attack's image")
    axes.plot(way, nearest[0] - way, color="#1f5fa8", label="proven: no direction goes below")
    axes.axhline(0, color="black", linewidth=1)
    axes.set(
        xlabel="how far the image is moved, in 1/255",
        ylabel="margin left, in 1/255",
        xlim=(0, way[-1]),
        ylim=(-0.4 * nearest[0], 1.2 * nearest[0]),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def along(subject: Subject, direction: Array, way: Array) -> Array:
    """`rooms` of the image moved in a direction by each distance of `way`, shape (len(way),)."""
    moved = subject.pixels + way[:, None, None, None] * unit(direction)
    return rooms(subject, moved)


def draw_changes(subject: Subject) -> Figure:
    """The image after changes of one length, rounded to 8 bits, and these changes, magnified."""
    found = changes(subject)
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    grid = figure.subplots(2, 1 + len(found))
    draw_image(grid[0, 0], "the image", subject.pixels)
    grid[1, 0].axis("off")
    for column, (title, moved) in enumerate(found.items(), 1):
        factor = magnification(moved)
        draw_image(grid[0, column], title, subject.pixels + moved)
        draw_image(grid[1, column], f"change x {factor}", 128 + factor * moved)
    return figure


def draw_image(axes: Any, title: str, pixels: Array) -> None:  # noqa: ANN401
    """Pixels of shape (3, n, n), 0 ... 255."""
    picture = np.clip(np.rint(pixels.transpose(1, 2, 0)), 0, 255).astype(np.uint8)
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize="large")
    axes.axis("off")


PICTURES: dict[str, Callable[[Subject], Figure]] = {
    "radius-slice.svg": draw_slice,
    "radius-margins.svg": draw_margins,
    "radius-changes.png": draw_changes,
}


def main() -> None:
    """Draw all pictures."""
    # The same bytes every time: no date, no random names.
    mpl.rcParams["svg.hashsalt"] = "lipdeploy"
    with Predictor(SAMPLES / "model.onnx") as predictor:
        subject = read_subject(predictor, SAMPLES / IMAGE)
        for name, draw in PICTURES.items():
            metadata = {"Date": None} if name.endswith("svg") else {"Software": None}
            draw(subject).savefig(DOCS / name, dpi=130, metadata=metadata)
            print(name)


if __name__ == "__main__":
    main()
