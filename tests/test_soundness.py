"""Attacks on certificates: none may succeed inside the radius, and some must just outside."""

import numpy as np
import pytest
import torch
from helpers import make_network, random_pixels

from lipdeploy.artifact import make_manifest
from lipdeploy.certificate import Answers, Certifier
from lipdeploy.exporters import forms
from lipdeploy.exporters.freeze import freeze
from lipdeploy.exporters.onnx import build_model
from lipdeploy.exporters.plan import Choice, LayerShape
from lipdeploy.frozen import FrozenNetwork, Linear
from lipdeploy.heads import LinearHead
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.training.lipconvnet import LipConvNet

STEPS = 30


def certify(network: FrozenNetwork, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and radii in pixel units, from the engine, as the predictor makes them."""
    manifest = make_manifest(network, ("a", "b", "c"), {}, {}, {})
    runtime = OnnxRuntime(build_model(network, manifest).SerializeToString(), "cpu")
    features, logits = runtime.run(pixels.astype(np.float32))
    labels = logits.argmax(axis=1)
    answers = Answers(pixels, features, labels)
    return labels, Certifier(network, manifest).network_radii(answers)


def attack(
    network: LipConvNet, pixels: np.ndarray, labels: np.ndarray, radii: np.ndarray, seed: int
) -> np.ndarray:
    """Projected gradient steps on the margin to the best rival, on the sphere of each radius."""
    x, y = torch.from_numpy(pixels), torch.from_numpy(labels)
    size = torch.from_numpy(radii).view(-1, 1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(x.shape, generator=generator, dtype=torch.double)
    for _ in range(STEPS):
        delta = size * delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta.requires_grad_()
        logits = network(x + delta)
        own = logits.gather(1, y[:, None])
        rivals = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1, keepdim=True)
        (gradient,) = torch.autograd.grad((rivals - own).sum(), delta)
        step = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)
        delta = (delta + 0.3 * size * step).detach()
    return (size * delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).numpy()


@pytest.mark.parametrize("head", ["linear", "lln", "mlp"])
@pytest.mark.parametrize("padding", ["circular", "zero"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_attack_succeeds_inside_the_radius(head: str, padding: str, dtype: str) -> None:
    network = make_network(3, head=head, padding=padding).double()
    frozen = freeze(network).stored_as(dtype)
    pixels = random_pixels(24, 8, seed=1)
    labels, radii = certify(frozen, pixels)
    assert (radii > 0.5).sum() >= 12
    for seed in range(2):
        delta = attack(network, pixels, labels, 0.999 * radii, seed)
        attacked = frozen.head.logits(frozen.features(pixels + delta))
        assert np.array_equal(attacked.argmax(axis=1)[radii > 0], labels[radii > 0])


def linear_network(seed: int) -> FrozenNetwork:
    """Orthogonal layers without activations, whose certificate is exact up to rounding."""
    from test_operators import taps

    shape = LayerShape(4, 3, 3, 3, "circular")
    choice = Choice("spectral")
    layers = [forms.freeze_kernel(taps(3, seed=seed + i), shape, choice) for i in range(2)]
    generator = np.random.default_rng(seed)
    head = LinearHead(generator.normal(size=(3, 48)), generator.normal(size=3))
    biases = generator.normal(size=(2, 3))
    operations = tuple(Linear(op, bias) for op, bias in zip(layers, biases, strict=True))
    return FrozenNetwork(4, operations, head).stored_as("float32")


@pytest.mark.parametrize("seed", range(5))
def test_the_class_flips_just_outside_where_the_bound_is_exact(seed: int) -> None:
    network = linear_network(seed)
    pixels = random_pixels(20, 4, seed)
    labels, radii = certify(network, pixels)
    assert np.all(radii > 0)
    zero = network.features(np.zeros((1, 3, 4, 4)))
    units = np.eye(48).reshape(48, 3, 4, 4)
    jacobian = (network.features(units) - zero).T
    for x, label, radius in zip(pixels, labels, radii, strict=True):
        flips = {
            factor: any(
                int(network.head.logits(network.features(moved[None])).argmax()) != label
                for moved in towards_rivals(network, jacobian, x, int(label), factor * radius)
            )
            for factor in (0.999, 1.01)
        }
        assert flips == {0.999: False, 1.01: True}


def towards_rivals(
    network: FrozenNetwork, jacobian: np.ndarray, x: np.ndarray, label: int, length: float
) -> list[np.ndarray]:
    """x moved by `length` along the steepest direction to each rival."""
    weight = network.head.weights()["weight"].astype(float)
    moved = []
    for rival in set(range(len(weight))) - {label}:
        direction = jacobian.T @ (weight[rival] - weight[label])
        moved.append(x + length * (direction / np.linalg.norm(direction)).reshape(x.shape))
    return moved


def test_an_engine_that_computes_something_else_loses_its_radius() -> None:
    """The certificate trusts no engine: a wrong feature vector costs what it is wrong by."""
    network = freeze(make_network(0)).stored_as("float32")
    pixels = random_pixels(4, 8)
    features = network.features(pixels)
    labels = network.head.logits(features).argmax(axis=1)
    manifest = make_manifest(network, ("a", "b", "c"), {}, {}, {})

    def radii(engine: np.ndarray) -> np.ndarray:
        return Certifier(network, manifest).network_radii(Answers(pixels, engine, labels))

    honest = radii(features)
    # A direction that makes every margin larger than it is.
    generous = features + 10 * network.head.weights()["weight"][labels].astype(float)
    assert np.all(radii(generous) <= honest)
    assert np.all(radii(np.full_like(features, np.nan)) == 0)
