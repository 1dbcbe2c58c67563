"""Attacks: gradient steps on the sphere of a certificate, then a search among rounded neighbours.

Gradients are those of the exact network in float64; what counts is what the engine prints at an
input that float32 can hold.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lipdeploy.certificate import Answers, Certifier
from lipdeploy.engine_error import distances_upper
from lipdeploy.exporters.onnx_file import served_bytes
from lipdeploy.frozen import (
    ChannelMax,
    FrozenNetwork,
    Linear,
    MaxMin,
    Operation,
    ProjectionPooling,
    Shift,
)
from lipdeploy.heads import LinearHead
from lipdeploy.mlp_head import MlpHead
from lipdeploy.runtimes import Runtime
from lipdeploy.runtimes.numpy import NumpyRuntime
from lipdeploy.runtimes.onnx import OnnxRuntime
from soundness.networks import Case
from soundness.worst_cases import engine_of

STEPS, NEIGHBOURS = 24, 4
INSIDE, OUTSIDE = 0.999, 1.01
Backward = Callable[[np.ndarray], np.ndarray]


class Differentiable:
    """A frozen network with the gradients of its logits; its layers as dense matrices."""

    def __init__(self, network: FrozenNetwork) -> None:
        self.network, self._matrices = network, dict[int, np.ndarray]()

    def gradient(self, pixels: np.ndarray, towards: np.ndarray) -> np.ndarray:
        """Gradient of sum(towards * logits) of each image, shape (batch, 3, n, n)."""
        x, steps = pixels.transpose(2, 3, 0, 1), []
        for operation in self.network.operations:
            x, backward = self._step(operation, x)
            steps.append(backward)
        features = x.transpose(2, 3, 0, 1).reshape(len(pixels), -1)
        back = self._head_gradient(features, towards)
        n, c = x.shape[0], x.shape[3]
        g = back.reshape(len(pixels), c, n, n).transpose(2, 3, 0, 1)
        for backward in reversed(steps):
            g = backward(g)
        return g.transpose(2, 3, 0, 1)

    def _head_gradient(self, features: np.ndarray, towards: np.ndarray) -> np.ndarray:
        head = self.network.head
        weights = {name: w.astype(np.float64) for name, w in head.weights().items()}
        inner = towards @ weights["weight"]
        if isinstance(head, LinearHead):
            return inner
        before = features @ weights["hidden_weight"].T + weights["hidden_bias"]
        return (inner * 0.5 * (1 + np.tanh(before / 2))) @ weights["hidden_weight"]

    def _step(self, operation: Operation, x: np.ndarray) -> tuple[np.ndarray, Backward]:
        if isinstance(operation, Shift):
            return operation(x), lambda g: g
        if isinstance(operation, Linear):
            return self._linear(operation, x)
        if isinstance(operation, MaxMin | ChannelMax):
            return self._pairs(operation, x)
        if isinstance(operation, ProjectionPooling):
            return self._distances(operation, x)
        odd = x.shape[0] % 2
        assert not odd, "attacked networks have even grids"
        return operation(x), _depth_to_space

    def _linear(self, layer: Linear, x: np.ndarray) -> tuple[np.ndarray, Backward]:
        matrix, shape = self._matrix(layer), x.shape
        rows = x.transpose(2, 0, 1, 3).reshape(shape[2], -1)
        n = layer.operator.grid
        y = (rows @ matrix).reshape(shape[2], n, n, -1).transpose(1, 2, 0, 3)
        bias = layer.bias.astype(np.float64)

        def backward(g: np.ndarray) -> np.ndarray:
            flat = g.transpose(2, 0, 1, 3).reshape(shape[2], -1) @ matrix.T
            return flat.reshape(shape[2], n, n, -1).transpose(1, 2, 0, 3)

        return y + (bias if bias.ndim == 1 else bias[:, :, None, :]), backward

    def _matrix(self, layer: Linear) -> np.ndarray:
        """The layer on flattened (row, column, channel), applied from the right."""
        if id(layer) not in self._matrices:
            n, c = layer.operator.grid, layer.operator.in_channels
            units = np.eye(n * n * c).reshape(-1, n, n, c).transpose(1, 2, 0, 3)
            images = layer.operator.mv(units).transpose(2, 0, 1, 3)
            self._matrices[id(layer)] = images.reshape(n * n * c, -1)
        return self._matrices[id(layer)]

    def _pairs(self, operation: Operation, x: np.ndarray) -> tuple[np.ndarray, Backward]:
        first, second = np.split(x, 2, axis=-1)
        is_first = first >= second

        def backward(g: np.ndarray) -> np.ndarray:
            top, low = np.split(g, 2, axis=-1) if isinstance(operation, MaxMin) else (g, 0 * g)
            parts = [np.where(is_first, top, low), np.where(is_first, low, top)]
            return np.concatenate(parts, axis=-1)

        return operation(x), backward

    def _distances(self, operation: Operation, x: np.ndarray) -> tuple[np.ndarray, Backward]:
        first, second = np.split(x, 2, axis=-1)
        towards = np.concatenate([np.minimum(first, 0), second], axis=-1)
        y = operation(x)

        def backward(g: np.ndarray) -> np.ndarray:
            scaled = g / np.maximum(y, 1e-30)
            return np.concatenate([scaled, scaled], axis=-1) * towards

        return y, backward


def _depth_to_space(g: np.ndarray) -> np.ndarray:
    m, batch, channels = g.shape[0], g.shape[2], g.shape[3] // 4
    cells = g.reshape(m, m, batch, channels, 2, 2).transpose(0, 4, 1, 5, 2, 3)
    return cells.reshape(2 * m, 2 * m, batch, channels)


@dataclass
class Tally:
    """What became of the attacks on one network."""

    name: str
    attacks: int = 0
    violations: int = 0
    flips_outside: int = 0
    tried_outside: int = 0
    graph_above_host: int = 0
    radii: list[float] = field(default_factory=list)


def attack_case(case: Case, count: int, seed: int) -> Tally:
    """Attack `count` certificates of a network, half of them *network*, half *program*."""
    tally = Tally(case.name)
    network = case.network
    engine = engine_of(network, case.accumulation or "blocked")
    certifier = Certifier(engine.network, engine.manifest)
    runtime: Runtime = (
        OnnxRuntime(served_bytes(engine), "cpu") if case.accumulation else NumpyRuntime(network)
    )
    errors = (
        engine.manifest.engine_errors if case.accumulation else engine.manifest.reference_errors
    )
    pixels = _images(runtime, network, count // 2, seed)
    features, logits = runtime.run(pixels)
    answers = Answers(pixels.astype(np.float64), features, logits.argmax(axis=1))
    program = certifier.program_radii(answers, errors)
    radii = {"network": certifier.network_radii(answers), "program": program}
    if isinstance(runtime, OnnxRuntime):
        (inside,) = runtime.outputs(["radius"], {"pixels": pixels})
        tally.graph_above_host = int(np.sum(255 * inside.astype(np.float64) > program))
    differentiable = Differentiable(network)
    for statement, values in radii.items():
        tally.radii += values[values > 0].tolist()
        certified = values > 0
        tally.attacks += int(certified.sum())
        chosen = Answers(answers.pixels[certified], features[certified], answers.labels[certified])
        limits = values[certified]
        found = _attack(differentiable, chosen, limits * INSIDE, seed)
        tally.violations += _violations(certifier, runtime, chosen, found, limits, statement)
        if case.is_exact and statement == "program":
            # Rounding takes less than half a per cent of these.
            cost = radii["network"][certified] - values[certified]
            wide = 200 * cost < values[certified]
            outside = _attack(differentiable, chosen, values[certified] * OUTSIDE, seed)
            flips = _labels(runtime, outside) != chosen.labels
            tally.tried_outside += int(wide.sum())
            tally.flips_outside += int((flips & wide).sum())
    return tally


def _images(runtime: Runtime, network: FrozenNetwork, count: int, seed: int) -> np.ndarray:
    """Half noise, half images between two of different classes, as near to the border as certified.

    The nearer to the border, the smaller the radius, and the more rounding matters.
    """
    generator = np.random.default_rng(seed)
    n = network.image_size
    scale = generator.choice([5.0, 40.0, 120.0], size=(count, 1, 1, 1))
    noise = 128 + scale * generator.normal(size=(count, 3, n, n))
    a = np.clip(np.rint(noise), 0, 255).astype(np.float32)
    b = np.roll(a, 1, axis=0)
    first = _labels(runtime, a)
    low, high = np.zeros((count, 1, 1, 1)), np.ones((count, 1, 1, 1))
    for _ in range(14 if count else 0):
        middle = (low + high) / 2
        same = (_labels(runtime, a + middle * (b - a)) == first)[:, None, None, None]
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    back = low * (1 - generator.choice([1e-4, 1e-3, 1e-2], size=low.shape))
    near = (a + back * (b - a)).astype(np.float32)
    return np.where(np.arange(count)[:, None, None, None] % 2 == 0, a, near)


def _labels(runtime: Runtime, pixels: np.ndarray) -> np.ndarray:
    return runtime.run(pixels.astype(np.float32))[1].argmax(axis=1)


def _attack(network: Differentiable, answers: Answers, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Images at these distances that look most like another class, float32, (batch, 3, n, n)."""
    x, y = answers.pixels, answers.labels
    if not len(x):
        return x.astype(np.float32)
    generator = np.random.default_rng(seed)
    classes, size = network.network.head.classes, sizes[:, None, None, None]
    # Every image goes for the rival that its gradient says is nearest; a few for a random one.
    logits = network.network.head.logits(network.network.features(x))
    gaps = np.take_along_axis(logits, y[:, None], axis=1) - logits
    for rival in range(classes):
        towards = np.eye(classes)[np.full(len(y), rival)] - np.eye(classes)[y]
        slope = _norms(network.gradient(x, towards))[:, 0, 0, 0]
        gaps[:, rival] = np.where(y == rival, np.inf, gaps[:, rival] / (slope + 1e-300))
    rivals = gaps.argmin(axis=1)
    random = (y + generator.integers(1, classes, size=len(y))) % classes
    rivals = np.where(generator.random(len(y)) < 0.1, random, rivals)
    towards = np.eye(classes)[rivals] - np.eye(classes)[y]
    delta = np.zeros_like(x)
    for step in range(STEPS):
        uphill = network.gradient(x + delta, towards)
        uphill = uphill / (_norms(uphill) + 1e-300)
        delta = delta + (1.0 if step == 0 else 0.3) * size * uphill
        delta = size * delta / (_norms(delta) + 1e-300)
    return (x + delta).astype(np.float32)


def _norms(values: np.ndarray) -> np.ndarray:
    return np.sqrt((values**2).sum(axis=(1, 2, 3), keepdims=True))


def _violations(
    certifier: Certifier,
    runtime: Runtime,
    answers: Answers,
    found: np.ndarray,
    limits: np.ndarray,
    statement: str,
) -> int:
    """Certificates with an input inside their ball at which their statement is false."""
    if not len(found):
        return 0
    broken = np.zeros(len(found), dtype=bool)
    generator = np.random.default_rng(0)
    for attempt in range(1 + NEIGHBOURS):
        candidates = found
        if attempt:
            signs = generator.choice([-1, 0, 1], size=found.shape).astype(np.float32)
            candidates = found * (1 + signs * np.float32(2.0**-23))
            assert candidates.dtype == np.float32
        distances = _norms(candidates.astype(np.float64) - answers.pixels)[:, 0, 0, 0]
        inside = distances * (1 + 1e-12) < limits
        broken |= inside & _is_false(certifier, runtime, answers, candidates, statement)
    return int(broken.sum())


def _is_false(
    certifier: Certifier,
    runtime: Runtime,
    answers: Answers,
    candidates: np.ndarray,
    statement: str,
) -> np.ndarray:
    if statement == "program":
        return _labels(runtime, candidates) != answers.labels
    network, exact = certifier.network, candidates.astype(np.float64)
    logits = network.head.logits(network.features(exact))
    own = np.take_along_axis(logits, answers.labels[:, None], axis=1)
    # Beyond what float64 can be wrong by: a bound, no tolerance.
    errors = certifier.bounds.reference_errors
    distances = distances_upper(exact, network.centre)
    head = network.head
    steepest = head.lipschitz if isinstance(head, MlpHead) else head.distances_upper
    limit = errors.features(distances) * float(steepest.max()) + errors.logits(distances)
    return (logits - own).max(axis=1) > limit
