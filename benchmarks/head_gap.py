"""What a head's certificate gives away, in feature space: `make head-gap`.

    PYTHONPATH=benchmarks python benchmarks/head_gap.py MODEL... [--data FOLDER]

For right answers on the images that the study judges by: the certified distance of the feature
vector, the distance of the nearest point of another class that a search finds, and their ratio.
A linear head's certificate is exact, so its ratio is 1; what the body gives away is not in here.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from study import images
from torch import Tensor, nn

from lipdeploy.exporters.freeze import freeze
from lipdeploy.training.checkpoint import load_model

STEPS = 8
OVERSHOOT = 1 + 1e-6


def slopes(head: nn.Module, points: Tensor, of: Tensor, against: Tensor) -> tuple[Tensor, Tensor]:
    """Margins of a class against another, shape (batch,), and their gradients (batch, d)."""
    points = points.detach().requires_grad_()
    logits = head(points)
    rows = torch.arange(len(points))
    margins = logits[rows, of] - logits[rows, against]
    (gradients,) = torch.autograd.grad(margins.sum(), points)
    return margins.detach(), gradients


def nearest(head: nn.Module, features: Tensor, winners: Tensor, rivals: Tensor) -> Tensor:
    """Distances to the nearest points found where the rival wins; infinite where none was.

    Each step goes from the features to the nearest zero of the margin as it is linearised at the
    last point: fixed points are stationary points of the distance to the decision boundary.
    """
    found = torch.full((len(features),), torch.inf, dtype=features.dtype)
    points = features
    for _ in range(STEPS):
        margins, gradients = slopes(head, points, winners, rivals)
        at_features = margins + ((features - points) * gradients).sum(dim=1)
        moves = (at_features / gradients.square().sum(dim=1)).unsqueeze(1) * gradients
        points = features - OVERSHOOT * moves
        wins, _ = slopes(head, points, winners, rivals)
        distances = torch.where(wins < 0, (points - features).norm(dim=1), torch.inf)
        found = torch.minimum(found, distances)
    return found


def gap(model: Path, data: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Certified and found distances of right answers, and the median slope of their margins."""
    network = load_model(model).network
    frozen = freeze(network)
    _, held = images(data)
    parts = [frozen.features(part.double().numpy()) for part in held.pixels.split(250)]
    features = np.concatenate(parts)
    winners = frozen.head.logits(features).argmax(axis=1)
    right = np.flatnonzero(winners == held.labels.numpy())
    certified = frozen.head.radii_lower(features[right], winners[right])
    head, points = network.head.double(), torch.from_numpy(features[right])
    of = torch.from_numpy(winners[right])
    others = [(of + shift) % frozen.head.classes for shift in range(1, frozen.head.classes)]
    found = torch.stack([nearest(head, points, of, rivals) for rivals in others]).amin(dim=0)
    _, gradients = slopes(head, points, of, others[0])
    return certified, found.numpy(), float(gradients.norm(dim=1).median())


def main() -> None:
    """Print a line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10-jpeg"))
    asked = parser.parse_args()
    columns = "model", "right", "certified", "found", "found / certified", "slope of a margin"
    table = Table(*columns, title="Medians over right answers; distances in feature space")
    for model in asked.models:
        certified, found, slope = gap(model, asked.data)
        ratio = np.median(found / certified)
        numbers = f"{np.median(certified):.2f}", f"{np.median(found):.2f}", f"{ratio:.3f}"
        table.add_row(model.stem, str(len(found)), *numbers, f"{slope:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
