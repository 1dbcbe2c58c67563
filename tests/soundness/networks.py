"""The networks that are attacked: heads, paddings, arithmetics, and weights of every kind."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from helpers import make_network

from lipdeploy.exporters.freeze import freeze
from lipdeploy.frozen import FrozenNetwork, Linear, Operation, Shift
from lipdeploy.heads import LinearHead
from lipdeploy.operators import DenseMatrix
from lipdeploy.rounding import Accumulation
from lipdeploy.training.lipconvnet import LipConvNet

SIDE = 8


@dataclass(frozen=True, eq=False)
class Case:
    """A network and the engine that it is run with.

    Attributes:
        name: for the report.
        network: frozen.
        accumulation: of the ONNX engine; None for the float64 one.
        is_exact: whether the bound is attained, so that classes must flip just outside.
    """

    name: str
    network: FrozenNetwork
    accumulation: Accumulation | None
    is_exact: bool = False


@cache
def cases() -> tuple[Case, ...]:
    """At least twenty of them."""
    return tuple(_cases())


def _cases() -> Iterator[Case]:
    accumulations: list[Accumulation] = ["blocked", "same-order", "any-order"]
    seed = 0
    for head in ("linear", "lln", "mlp"):
        for padding in ("circular", "zero"):
            for kind in ("random", "trained"):
                seed += 1
                network = make_network(seed, SIDE, head=head, padding=padding)
                if kind == "trained":
                    train(network, seed)
                dtype = ("float32", "float16")[seed % 2]
                form = ("auto", "spectral", "fused")[seed % 3] if padding == "circular" else "auto"
                frozen = freeze(network.double(), form).stored_as(dtype)
                name = f"{head} {padding} {kind} {dtype} {form}"
                yield Case(f"{name}, float32", frozen, accumulations[seed % 3])
                if kind == "trained":
                    yield Case(f"{name}, float64", frozen, None)
    yield Case("sll, projection pooling", _of_kind("sll", "projection"), "blocked")
    yield Case("bro, projection pooling, float64", _of_kind("bro", "projection"), None)
    yield Case("aol, householder", _of_kind("aol", "max"), "same-order")
    yield Case("zero-padded series", _series(), "blocked")
    yield Case("biases of 1e6", _large_biases(), "blocked")
    yield Case("biases of 1e6, same order", _large_biases(), "same-order")
    yield Case("rescaled layers", _rescaled(), "blocked")
    yield Case("tied logits", _tied(), "blocked")
    yield Case("nine of 12 rivals are far", _near_rival(), "any-order")
    for index, accumulation in enumerate(accumulations):
        yield Case(f"linear, {accumulation}", linear_network(index), accumulation, is_exact=True)
    yield Case("linear, float64", linear_network(7), None, is_exact=True)


def train(network: LipConvNet, seed: int) -> None:
    """A few steps on classes that differ in colour and texture, so that margins are wide."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(32)
    base = torch.randn(3, 3, SIDE, SIDE, generator=generator) * 60
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    network.train()
    for _ in range(40):
        noise = torch.randn(len(labels), 3, SIDE, SIDE, generator=generator) * 40
        pixels = (128 + base[labels] + noise).clamp(0, 255).round()
        loss = torch.nn.functional.cross_entropy(8 * network(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


def _plain(seed: int, **shape: object) -> FrozenNetwork:
    return freeze(make_network(seed, SIDE, **shape).double()).stored_as("float32")


def _of_kind(layer: str, pooling: str) -> FrozenNetwork:
    network = make_network(39, SIDE, layer=layer, pooling=pooling, activation="householder")
    train(network, 39)
    return freeze(network.double()).stored_as("float32")


def _series() -> FrozenNetwork:
    network = make_network(40, SIDE, padding="zero").double()
    return freeze(network, "taylor").stored_as("float32")


def _with_biases(network: FrozenNetwork, layer: int, change: np.ndarray | float) -> FrozenNetwork:
    operations, index = list(network.operations), 0
    for position, operation in enumerate(operations):
        if isinstance(operation, Linear):
            if index == layer:
                bias = (operation.bias.astype(np.float64) + change).astype(np.float32)
                operations[position] = replace(operation, bias=bias)
            index += 1
    return replace(network, operations=tuple(operations))


def _large_biases() -> FrozenNetwork:
    """Every feature rides on 1e6, where float32 has a step of 1/16; the head takes it off again."""
    network = _with_biases(_plain(41), 1, 1e6)
    middle = network.features(np.full((1, 3, SIDE, SIDE), 128.0))
    weight, bias = (np.array(network.head.weights()[name]) for name in ("weight", "bias"))
    balanced = bias - network.head.logits(middle)[0]
    return replace(network, head=LinearHead(weight, balanced.astype(np.float32)))


def _rescaled() -> FrozenNetwork:
    """One layer a million times larger, the next as much smaller: the same function."""
    network, factors = _plain(42), {1: 2.0**20, 2: 2.0**-20}
    operations, index, so_far = list(network.operations), 0, 1.0
    for position, operation in enumerate(operations):
        if isinstance(operation, Linear):
            factor = factors.get(index, 1.0)
            so_far *= factor
            operator = operation.operator.scaled(factor).stored_as("float32")
            bias = (operation.bias * so_far).astype(np.float32)
            operations[position] = Linear(operator, bias)
            index += 1
    return replace(network, operations=tuple(operations))


def _tied() -> FrozenNetwork:
    """Two classes with the same row: nothing is ever certified for them."""
    network = _plain(43)
    weight, bias = (np.array(network.head.weights()[name]) for name in ("weight", "bias"))
    weight[1], bias[1] = weight[0], bias[0]
    return replace(network, head=LinearHead(weight, bias))


def _near_rival() -> FrozenNetwork:
    """The last of twelve classes is always the nearest rival, or the class itself."""
    network = _plain(44, classes=12)
    weight, bias = (np.array(network.head.weights()[name]) for name in ("weight", "bias"))
    weight[11] = weight[0] * np.float32(0.99)
    return replace(network, head=LinearHead(weight, bias))


def linear_network(seed: int) -> FrozenNetwork:
    """Two orthogonal layers without an activation, so that the bound is exact."""
    generator = np.random.default_rng(seed)
    body: list[Operation] = [Shift((128, 128, 128))]
    for gain in (4 / 255, 1.0):
        matrix = np.linalg.qr(generator.normal(size=(48, 48)))[0] * gain
        body.append(Linear(DenseMatrix(4, matrix), generator.normal(size=3)))
    head = LinearHead(generator.normal(size=(3, 48)), generator.normal(size=3))
    return FrozenNetwork(4, tuple(body), head).stored_as("float32")
