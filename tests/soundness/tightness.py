"""How near the tight radius of an MLP head comes to the best attack on it, in feature space."""

from functools import cache

import numpy as np
import torch
from helpers import make_network

from lipdeploy.exporters.freeze import freeze
from soundness.checks import worst_lead
from soundness.networks import SIDE, train

BISECTIONS = 30


def trained_head(seed: int) -> tuple:
    """A trained MLP head, with features of images that it has not seen."""
    network = make_network(seed, SIDE, head="mlp", classes=4)
    train(network, seed)
    frozen = freeze(network.double()).stored_as("float32")
    generator = torch.Generator().manual_seed(seed + 1000)
    pixels = 128 + torch.randn(200, 3, SIDE, SIDE, generator=generator) * 70
    return frozen.head, frozen.features(pixels.clamp(0, 255).round().double().numpy())


def attacked_radii(head, features: np.ndarray, labels: np.ndarray, start: np.ndarray) -> np.ndarray:  # noqa: ANN001
    """The smallest radius at which the attack finds another class, by bisection."""
    low, high = start.copy(), 4 * start + 1e-9
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        flips = worst_lead(head, features, labels, middle) < 0
        low, high = np.where(flips, low, middle), np.where(flips, middle, high)
    return high


@cache
def ratios(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Closed-form and tight radii over the attacked ones, where there is a radius."""
    head, features = trained_head(seed)
    labels = head.logits(features).argmax(axis=1)
    closed = head.radii_lower(features, labels)
    tight = head.radii_lower(features, labels, tight=True)
    assert np.all(tight >= closed), "a tight radius below the closed form"
    kept = closed > 0
    attacked = attacked_radii(head, features[kept], labels[kept], closed[kept])
    assert np.all(tight[kept] <= attacked), "an attack inside a tight radius"
    return closed[kept] / attacked, tight[kept] / attacked


def report(networks: int) -> str:
    """Medians over some trained heads."""
    found = [ratios(seed) for seed in range(networks)]
    closed, tight = (float(np.median(np.concatenate(part))) for part in zip(*found, strict=True))
    return (
        f"tightness on {networks} trained MLP heads: closed form {closed:.4f}, tight {tight:.4f} "
        "of the best attack (medians)"
    )
