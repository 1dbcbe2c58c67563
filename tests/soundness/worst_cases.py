"""Inputs and networks on which rounding is as bad as the bounds allow, within a factor of two.

The pattern: w = x = (1, h, h, ...) with h = 2^-12 has products 1, 2^-24, 2^-24, ... In float32
each of the small ones is half a unit in the last place of the sum, which stays 1: n - 1 errors of u
each, all of one sign, while ||w|| ||x|| is 1 + (n - 1) u. With h a little larger each is rounded up
instead, and the errors have the other sign.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lipdeploy.arithmetic import ARITHMETICS, FLOAT64
from lipdeploy.artifact import Engine, make_manifest
from lipdeploy.certificate import Answers, Certifier
from lipdeploy.exporters.onnx_file import onnx_bytes, parse_onnx
from lipdeploy.frozen import (
    FrozenNetwork,
    Linear,
    Operation,
    ProjectionPooling,
    Shift,
    SpaceToDepth,
)
from lipdeploy.heads import LinearHead
from lipdeploy.operators import DenseMatrix, PointwiseMatrix
from lipdeploy.rounding import LONGEST_SUMS, Accumulation, Rounding
from lipdeploy.runtimes.onnx import OnnxRuntime

SIDE = 8
PIXELS = 3 * SIDE * SIDE
LARGE = 128.0
SMALL = 2.0**-12


def pattern(length: int, block: int | None, *, up: bool = False) -> np.ndarray:
    """The pattern above, begun anew every `block` entries; float64, exact in float32."""
    values = np.full(length, SMALL * (1 + 2.0**-20 if up else 1))
    values[:: block or length] = 1.0
    return values


def engine_of(network: FrozenNetwork, accumulation: Accumulation) -> Engine:
    """The engine file of a network, read back, with class names as many as it has."""
    names = tuple(f"class {index}" for index in range(network.head.classes))
    # By name, so that a mutation of the arithmetic is a mutation here.
    rounding = Rounding.of_graph(ARITHMETICS["float32"], accumulation)
    manifest = make_manifest(network, names, {}, {}, {}, rounding)
    return parse_onnx(onnx_bytes(network, manifest), "soundness")


@dataclass(frozen=True)
class Swing:
    """Two inputs next to each other at which an engine errs in opposite directions.

    Attributes:
        network: whose first logit is a long sum and whose second is a constant between the two
            computed values of the first, so that the engine's class differs.
        accumulation: how its graph is made.
        pixels: shape (2, 3, n, n), float32.
    """

    network: FrozenNetwork
    accumulation: Accumulation
    pixels: np.ndarray


def swing_in_the_body(accumulation: Accumulation) -> Swing:
    """The long sum is the first layer's; the head copies it."""
    matrix = np.zeros((PIXELS, SIDE * SIDE))
    matrix[:, 0] = pattern(PIXELS, LONGEST_SUMS[accumulation]) / LARGE
    weight = np.zeros((2, SIDE * SIDE))
    weight[0, 0] = 1.0
    return _swing([Linear(DenseMatrix(SIDE, matrix), np.zeros(1))], weight, accumulation)


def swing_through_two_layers() -> Swing:
    """Two long sums one after the other, so that the body errs by much more than the head can.

    The first gives 1.25, which is 1 to the rounding of what is added, and 63 times h.
    """
    first = np.zeros((PIXELS, SIDE * SIDE))
    first[:, 0] = pattern(PIXELS, None)
    first[0] = SMALL
    first[0, 0] = 1.25
    second = np.zeros((64, 16))
    second[:, 0] = pattern(64, None)
    weight = np.zeros((2, 16))
    weight[0, 0] = 1.0
    body = [
        Linear(DenseMatrix(SIDE, first / LARGE), np.zeros(1)),
        SpaceToDepth(),
        Linear(DenseMatrix(SIDE // 2, second), np.zeros(1)),
    ]
    return _swing(body, weight, "any-order")


def swing_in_the_head(accumulation: Accumulation) -> Swing:
    """The long sum is the head's; the body copies the pixels in the order of features."""
    weight = np.zeros((2, PIXELS))
    weight[0] = pattern(PIXELS, LONGEST_SUMS[accumulation])
    body = [Linear(PointwiseMatrix(SIDE, np.eye(3) / LARGE), np.zeros(3))]
    return _swing(body, weight, accumulation, channels_first=True)


def _swing(
    body: list[Operation],
    weight: np.ndarray,
    accumulation: Accumulation,
    *,
    channels_first: bool = False,
) -> Swing:
    """Put the threshold just above the smaller of the two computed values."""
    block = LONGEST_SUMS[accumulation]
    inputs = np.stack([pattern(PIXELS, block, up=True), pattern(PIXELS, block)]) * LARGE
    if channels_first:
        pixels = inputs.reshape(2, 3, SIDE, SIDE)
    else:
        pixels = inputs.reshape(2, SIDE, SIDE, 3).transpose(0, 3, 1, 2)
    pixels = pixels.astype(np.float32)

    def network(threshold: float) -> FrozenNetwork:
        head = LinearHead(weight, np.array([0.0, threshold]))
        operations = (Shift((0, 0, 0)), *body)
        return FrozenNetwork(SIDE, operations, head).stored_as("float32")

    engine = engine_of(network(0.0), accumulation)
    _, logits = OnnxRuntime(engine.prepared, "cpu").run(pixels)
    threshold = np.nextafter(np.float32(logits[:, 0].min()), np.float32(np.inf))
    return Swing(network(float(threshold)), accumulation, pixels)


def exact_features(network: FrozenNetwork, image: np.ndarray) -> list[Fraction]:
    """Features of one image in exact fractions, of layers that are one matrix."""
    x = _fractions(image.transpose(1, 2, 0))
    for operation in network.operations:
        if isinstance(operation, Shift):
            x = x - _fractions(np.array(operation.colour))
        elif isinstance(operation, Linear):
            x = _apply(operation, x)
        else:
            x = operation(x[:, :, None, :])[:, :, 0]
    return list(x.transpose(2, 0, 1).ravel())


def _fractions(values: np.ndarray) -> np.ndarray:
    return np.vectorize(Fraction, otypes=[object])(values.astype(np.float64))


def _apply(layer: Linear, x: np.ndarray) -> np.ndarray:
    is_dense = isinstance(layer.operator, DenseMatrix)
    rows = x.reshape(1, -1) if is_dense else x.reshape(-1, x.shape[-1])
    columns = [
        [(index, Fraction(value)) for index, value in enumerate(column) if value]
        for column in layer.operator.matrix.astype(np.float64).T.tolist()
    ]
    sums = [[sum((row[i] * v for i, v in c), Fraction(0)) for c in columns] for row in rows]
    outputs = np.array(sums, dtype=object).reshape(*x.shape[:2], -1)
    return outputs + _fractions(np.broadcast_to(layer.bias, outputs.shape))


def engine_error_ratio(swing: Swing) -> float:
    """Largest measured error of an engine's features over its bound; must not exceed 1."""
    engine = engine_of(swing.network, swing.accumulation)
    features, _ = OnnxRuntime(engine.prepared, "cpu").run(swing.pixels)
    reached = np.sqrt((swing.pixels.astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
    bounds = engine.manifest.engine_errors.features(reached).tolist()
    ratios = []
    for row, image, bound in zip(features.tolist(), swing.pixels, bounds, strict=True):
        exact = exact_features(swing.network, image)
        squared = sum((Fraction(a) - b) ** 2 for a, b in zip(row, exact, strict=True))
        ratios.append(float(squared) ** 0.5 / bound)
    return max(ratios)


def vanishing_squares() -> tuple[FrozenNetwork, np.ndarray]:
    """A network whose pooling squares numbers to 0, scaled up again, and an image on which it does.

    The error is as large as what came in, 0.005, where products alone would err by 1e-16.
    """
    tiny = np.float32(3e-21)
    first, back = np.zeros((3, 4), np.float32), np.eye(2, dtype=np.float32) / tiny
    first[0, 2] = first[1, 3] = tiny
    operations = (
        Shift((128, 128, 128)),
        Linear(PointwiseMatrix(1, first), np.zeros(4, np.float32)),
        ProjectionPooling(),
        Linear(PointwiseMatrix(1, back), np.zeros(2, np.float32)),
    )
    head = LinearHead(np.array([[-0.5, 0], [0.5, 0]], np.float32), np.zeros(2, np.float32))
    pixels = np.full((1, 3, 1, 1), 128.0, np.float32)
    pixels[0, 0] += np.float32(0.005)
    return FrozenNetwork(1, operations, head), pixels


def program_fails(swing: Swing) -> bool:
    """Whether the engine's class differs at an input inside the other one's *program* radius."""
    engine = engine_of(swing.network, swing.accumulation)
    features, logits = OnnxRuntime(engine.prepared, "cpu").run(swing.pixels)
    labels, pixels = logits.argmax(axis=1), swing.pixels.astype(np.float64)
    certifier = Certifier(engine.network, engine.manifest)
    answers = Answers(pixels, features, labels)
    radii = certifier.program_radii(answers, engine.manifest.engine_errors)
    assert labels[0] != labels[1], "the case does not swing"
    return bool(np.linalg.norm(pixels[0] - pixels[1]) < radii.max())


def float64_error_ratio(length: int) -> float:
    """The same pattern in float64, summed one by one: its error over the bound of the reference."""
    row = np.full((length, 1), 2.0**-26.5)
    row[0] = 1.0
    exact, total = Fraction(0), 0.0
    for value in row[:, 0].tolist():
        exact += Fraction(value) ** 2
        total += value * value
    step = DenseMatrix(1, row).step(Rounding(FLOAT64))
    size = Fraction(float(np.linalg.norm(row)))
    return float(abs(exact - Fraction(total)) / (Fraction(step.rounding_upper) * size))
