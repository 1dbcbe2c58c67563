"""A network so small that every whole-number image inside a certificate can be tried."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lipdeploy.certificate import Answers, Certifier, integer_budget, scale_radius
from lipdeploy.frozen import FrozenNetwork, Linear, MaxMin, Shift
from lipdeploy.heads import LinearHead
from lipdeploy.operators import DenseMatrix
from lipdeploy.runtimes.onnx import OnnxRuntime
from soundness.worst_cases import engine_of

SIDE = 2
DIMENSIONS = 3 * SIDE * SIDE
LARGEST_BUDGET = 5


@dataclass
class Exhausted:
    """What trying everything found.

    Attributes:
        certificates: images whose whole ball was tried.
        inputs: inputs that were tried.
        violations: inputs inside a budget with another class.
        sharp: certificates outside of whose budget, at less than twice the radius, a class flips.
    """

    certificates: int = 0
    inputs: int = 0
    violations: int = 0
    sharp: int = 0


def moves(largest: int) -> np.ndarray:
    """Every whole-number vector with a sum of squares of at most `largest`, (count, DIMENSIONS)."""
    found: list[list[int]] = []
    _extend([], largest, found)
    return np.array(found, dtype=np.int64)


def _extend(start: list[int], left: int, found: list[list[int]]) -> None:
    if len(start) == DIMENSIONS:
        found.append(start)
        return
    reach = int(left**0.5)
    for step in range(-reach, reach + 1):
        _extend([*start, step], left - step * step, found)


def networks() -> Iterator[FrozenNetwork]:
    """Orthogonal layers on 12 numbers, an activation between them, and a head of four classes."""
    for seed in range(3):
        generator = np.random.default_rng(seed)
        first = np.linalg.qr(generator.normal(size=(16, DIMENSIONS)))[0].T
        second = np.linalg.qr(generator.normal(size=(16, 16)))[0]
        layers = [
            Linear(DenseMatrix(SIDE, matrix), generator.normal(size=4))
            for matrix in (first, second)
        ]
        head = LinearHead(generator.normal(size=(4, 16)), generator.normal(size=4))
        body = (Shift((128, 128, 128)), layers[0], MaxMin(), layers[1])
        yield FrozenNetwork(SIDE, body, head).stored_as("float32")


def exhaust(images: int, largest: int = LARGEST_BUDGET) -> Exhausted:
    """Try every image inside the budgets of some whole-number images, on the engine."""
    result, everywhere = Exhausted(), moves(largest)
    squares = (everywhere**2).sum(axis=1)
    for index, network in enumerate(networks()):
        engine = engine_of(network, "blocked")
        runtime = OnnxRuntime(engine.prepared, "cpu")
        generator = np.random.default_rng(index)
        pixels = generator.integers(100, 156, (4000, 3, SIDE, SIDE)).astype(np.float32)
        features, logits = runtime.run(pixels)
        labels = logits.argmax(axis=1)
        certifier = Certifier(network, engine.manifest)
        answers = Answers(pixels.astype(np.float64), features, labels)
        radii = certifier.program_radii(answers, engine.manifest.engine_errors)
        budgets = np.array([integer_budget(scale_radius(r, 255)) for r in radii.tolist()])
        for chosen in np.nonzero((budgets >= 1) & (budgets < largest))[0][:images].tolist():
            moved = pixels[chosen].ravel() + everywhere
            _, found = runtime.run(moved.reshape(-1, 3, SIDE, SIDE).astype(np.float32))
            flips = found.argmax(axis=1) != labels[chosen]
            inside = squares <= budgets[chosen]
            result.certificates += 1
            result.inputs += int(inside.sum())
            result.violations += int((flips & inside).sum())
            result.sharp += bool(np.any(flips & ~inside))
    return result
