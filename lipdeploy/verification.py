"""Proving an engine's bounds again, from its weights alone and by other means than export used.

Norms: `bounds.residual_norms_upper` instead of a factorisation, complex blocks as complex matrices
instead of real ones of twice the size. Products, sums of squares, and the recursion of the error
bounds: exact fractions. What is claimed passes if it is at least what is found here; claims are a
little larger than what export proved (`directed.CLAIM`), so that honest ones do.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import singledispatch
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lipdeploy.arithmetic import PRECISIONS
from lipdeploy.artifact import REFERENCE, Manifest, engine_roundings
from lipdeploy.bounds import frobenius_upper, gamma, residual_norms_upper, up
from lipdeploy.directed import MARGIN, AffineBound
from lipdeploy.engine_error import (
    LARGEST_PIXEL,
    EngineErrors,
    ErrorAnalysis,
    check_known,
    reach,
)
from lipdeploy.errors import LipdeployError, ModelError
from lipdeploy.fourier import RealFourier, symbol_factors
from lipdeploy.frozen import FrozenNetwork, Linear, ProjectionPooling
from lipdeploy.heads import Head, LinearHead
from lipdeploy.mlp_head import PAIRWISE_CLASSES, MlpHead
from lipdeploy.operators import DenseMatrix, LinearOperator, PointwiseMatrix, exact
from lipdeploy.rounding import Rounding
from lipdeploy.spectral import FusedSpectralConv, Spectral, SpectralConv
from lipdeploy.taylor import TaylorConv, exponential_remainder_upper
from lipdeploy.tiled import TiledConv, symbol_distance_upper, symbol_slack

Array = NDArray[np.float64]
Verdict = Literal["integrity", "soundness"]

EXACT_CLASSES = 32
"""Up to this many classes distances of the head's rows are computed in exact fractions, beyond by
the bound that export uses: pairs of many classes would take minutes."""


@dataclass(frozen=True)
class Check:
    """One line of a verification.

    Attributes:
        verdict: "integrity" (what was exported is what is here) or "soundness" (the bounds hold).
        name: what was checked.
        passed: None where it could not be checked here.
        detail: what was found.
    """

    verdict: Verdict
    name: str
    passed: bool | None
    detail: str


def check_bounds(network: FrozenNetwork, manifest: Manifest) -> Iterator[Check]:
    """Every bound of the manifest, one line each."""
    is_run = manifest.arithmetic in PRECISIONS
    detail = f"{manifest.arithmetic}, as the graph that is emitted for it"
    if not is_run:
        detail = f"{manifest.arithmetic}; engines compute in {', '.join(PRECISIONS)}"
    yield Check("soundness", "declared arithmetic", is_run, detail)
    norms: list[Fraction] = []
    for index, (layer, claim) in enumerate(zip(network.linear(), manifest.layers, strict=True)):
        name = f"norm of layer {index} ({layer.operator.form})"
        try:
            found = Fraction(independent_norm_upper(layer.operator))
        except LipdeployError as error:
            yield Check("soundness", name, False, f"cannot be proven: {error}")
            continue
        norms.append(found)
        yield _compare(name, claim.norm_upper, found)
    if len(norms) == len(manifest.layers):
        yield _compare(
            "Lipschitz bound", manifest.lipschitz_upper, math.prod(norms, start=Fraction(1))
        )
    try:
        yield from check_head(network.head)
    except LipdeployError as error:
        yield Check("soundness", "head", False, f"cannot be proven: {error}")
    yield from _check_errors(network, manifest)


def _compare(name: str, claimed: float, found: Fraction) -> Check:
    detail = f"claimed {claimed:.9g}, proven {float(found):.9g}"
    return Check("soundness", name, Fraction(claimed) >= found, detail)


@singledispatch
def independent_norm_upper(operator: LinearOperator) -> float:
    """Upper bound of the norm of an operator, proven otherwise than by its own `norm_upper`."""
    raise ModelError(f"no second proof for the form {operator.form!r}")


@independent_norm_upper.register
def _(operator: PointwiseMatrix) -> float:
    return float(residual_norms_upper(operator.matrix))


@independent_norm_upper.register
def _(operator: DenseMatrix) -> float:
    return float(residual_norms_upper(operator.matrix))


@independent_norm_upper.register
def _(operator: SpectralConv) -> float:
    """Rows, then columns, of the transform; twice that, and the largest block."""
    basis = float(residual_norms_upper(operator.basis))
    columns = max(basis, float(residual_norms_upper(operator.phases)))
    return up(up(up(basis * columns) ** 2) * _largest_block(operator))


@independent_norm_upper.register
def _(operator: FusedSpectralConv) -> float:
    """Twice the transform, and the largest block."""
    return up(up(float(residual_norms_upper(operator.plane)) ** 2) * _largest_block(operator))


def _largest_block(operator: Spectral) -> float:
    """Complex blocks as complex matrices."""
    largest = float(np.max(residual_norms_upper(operator.real_blocks)))
    if len(operator.complex_blocks):
        blocks = exact(operator.complex_blocks)
        norms = residual_norms_upper(blocks[:, 0] + 1j * blocks[:, 1])
        largest = max(largest, float(np.max(norms)))
    return largest


@independent_norm_upper.register
def _(operator: TaylorConv) -> float:
    """1 plus the remainder of the series, ||A|| from complex blocks of a circular grid.

    As `TaylorConv.skew_norm_upper`, whose bound of the blocks' rounding this shares.
    """
    side = operator.grid + operator.kernel_size // 2
    fourier, taps = RealFourier(side), exact(operator.taps)
    slack = gamma(len(taps) + 32) * float(frobenius_upper(np.abs(taps).sum(axis=0))) * 2.01
    norms = [0.0]
    for frequencies in (fourier.real_frequencies(), fourier.complex_frequencies()):
        if len(frequencies):
            cosines, sines = symbol_factors(frequencies, operator.kernel_size, side)
            symbols = np.tensordot(cosines + 1j * sines, taps, axes=1)
            norms.append(float(np.max(residual_norms_upper(symbols))))
    remainder = exponential_remainder_upper(up(max(norms) + slack), operator.degree)
    return up(abs(operator.scale) * up(1 + remainder))


@independent_norm_upper.register
def _(operator: TiledConv) -> float:
    """As `TiledConv.norm_upper`, but every frequency of the grid itself, as a complex matrix.

    The bound of a symbol's rounding, and what is bounded to prove the distance of a tile from a
    convolution, are shared; the norms are proven otherwise.
    """
    n, k, taps, norms = operator.grid, operator.kernel_size, operator.taps, [0.0]
    for row in range(n // 2 + 1):
        frequencies = np.stack([np.full(n, row), np.arange(n)], axis=1)
        cosines, sines = symbol_factors(frequencies, k, n)
        found = residual_norms_upper(np.tensordot(cosines + 1j * sines, taps, axes=1))
        norms.append(float(np.max(found)))
    distance = symbol_distance_upper(operator.inner, taps, residual_norms_upper)
    return up((up(max(norms) + symbol_slack(taps)) + operator.overlap * distance) * MARGIN)


@singledispatch
def check_head(head: Head) -> Iterator[Check]:
    """The constants that a head carries."""
    yield Check("soundness", f"{head.kind} head", False, "no second proof for this head")


@check_head.register
def _(head: LinearHead) -> Iterator[Check]:
    yield _check_distances(head.weight, head.distances_upper)


@check_head.register
def _(head: MlpHead) -> Iterator[Check]:
    yield _check_distances(head.weight, head.distances_upper)
    first, second = exact(head.hidden_weight), exact(head.weight)
    norm = Fraction(float(residual_norms_upper(first)))
    lipschitz, curvature = [], []
    for label in range(head.classes):
        rivals = sorted(set(range(head.classes)) - {label})
        claimed = [Fraction(float(value)) for value in head.curvature[label, rivals]]
        negative = np.maximum(second[rivals] - second[label], 0.0)
        if head.classes > PAIRWISE_CLASSES:
            # One constant for all rivals; every entry must be at least that.
            negative, claimed = negative.max(axis=0, keepdims=True), [min(claimed)]
        found = [_curvature(first, row) for row in negative]
        curvature += list(zip(claimed, found, strict=True))
        for rival in rivals:
            squares = Fraction(float(head.distances_upper[label, rival])) ** 2
            if head.classes <= EXACT_CLASSES:
                squares = _squared_distance(second[label], second[rival])
            claim = Fraction(float(head.lipschitz[label, rival]))
            lipschitz.append((claim**2, squares * norm**2))
    yield _all_at_least("Lipschitz constants of the head", lipschitz)
    yield _all_at_least("curvature of the head", curvature)


def _curvature(first: Array, negative: Array) -> Fraction:
    """Largest eigenvalue of W1^T diag(negative / 4) W1, through its square root; 3 roundings."""
    weighted = np.sqrt(negative / 4)[:, None] * first
    norm = float(residual_norms_upper(weighted)) + 2.0**-50 * float(frobenius_upper(weighted))
    return Fraction(up(norm)) ** 2


def _squared_distance(a: Array, b: Array) -> Fraction:
    return sum(((Fraction(p) - Fraction(q)) ** 2 for p, q in zip(a, b, strict=True)), Fraction(0))


def _check_distances(weight: NDArray[np.floating], distances: Array) -> Check:
    name = "distances of the head's rows"
    if len(weight) > EXACT_CLASSES:
        return Check("soundness", name, None, f"exact only up to {EXACT_CLASSES} classes")
    rows = exact(weight)
    pairs = [
        (Fraction(float(distances[i, j])) ** 2, _squared_distance(rows[i], rows[j]))
        for i, j in combinations(range(len(rows)), 2)
    ]
    return _all_at_least(name, pairs)


def _all_at_least(name: str, pairs: list[tuple[Fraction, Fraction]]) -> Check:
    below = sum(claimed < found for claimed, found in pairs)
    detail = f"{below} of {len(pairs)} below what is proven"
    return Check("soundness", name, below == 0, detail)


def _check_errors(network: FrozenNetwork, manifest: Manifest) -> Iterator[Check]:
    known = {r.name: r for r in engine_roundings(manifest.rounding)}
    known[REFERENCE.name] = REFERENCE
    for name, claimed in manifest.errors.items():
        title = f"rounding errors, {name}"
        if name not in known:
            yield Check("soundness", title, False, "its graph does not support this assumption")
            continue
        try:
            found = exact_errors(network, known[name])
        except LipdeployError as error:
            yield Check("soundness", title, False, f"cannot be proven: {error}")
            continue
        pairs = list(zip(_numbers(claimed), _numbers(found), strict=True))
        detail = f"claimed {_shown(claimed)}, proven {_shown(found)} of the features"
        yield Check("soundness", title, all(a >= b for a, b in pairs), detail)


def _shown(errors: EngineErrors) -> str:
    return f"{errors.features.constant:.6g} + {errors.features.slope:.6g} t"


def _numbers(errors: EngineErrors) -> list[float]:
    bounds = (errors.features, errors.logits, errors.slopes)
    return [number for bound in bounds for number in (bound.constant, bound.slope)]


def exact_errors(network: FrozenNetwork, rounding: Rounding) -> EngineErrors:
    """The recursion of `lipdeploy.engine_error` in exact fractions, rounded up at the end.

    The steps of the layers and the norms at the centre are computed in float64, as there.
    """
    analysis = ErrorAnalysis(network)
    analysis.errors(rounding)  # refuses what can overflow
    u, storage = Fraction(rounding.entry_roundoff), Fraction(rounding.arithmetic.storage_roundoff)
    after, lipschitz = Fraction(LARGEST_PIXEL * 2 * network.image_size), Fraction(1)
    constant, slope = storage * after, storage + u
    norms, shape = iter(analysis.norms_at_centre), (network.image_size, 3)
    for operation in network.operations:
        shape = operation.shape_after(shape)
        size = shape[0] ** 2 * shape[1]
        if isinstance(operation, ProjectionPooling):
            lost = rounding.distance_of_pairs(size, 0.0)
            constant += Fraction(lost.slope) * (after + constant) + Fraction(lost.constant)
            slope += Fraction(lost.slope) * (lipschitz + slope)
        elif isinstance(operation, Linear):
            step = operation.operator.step(rounding)
            norm, a = Fraction(step.norm_upper), Fraction(step.rounding_upper)
            flushed = Fraction(step.underflow) + Fraction(rounding.flushed(size))
            before, after = map(Fraction, next(norms))
            constant = (norm + a) * constant + a * before + flushed
            slope = (norm + a) * slope + a * lipschitz
            lipschitz *= norm
            constant += u * (after + constant)
            slope += u * (lipschitz + slope)
        else:
            check_known(operation)
    features = AffineBound(_up(constant), _up(slope))
    feature_norm = analysis.feature_norm.plus(features)
    head = network.head
    reached = 2 * reach(network, rounding.arithmetic)
    logits = head.logit_error(rounding.of_head, feature_norm, reached)
    return EngineErrors(features, logits, head.slope_error(rounding.of_head, feature_norm))


def _up(value: Fraction) -> float:
    nearest = float(value)
    return nearest if Fraction(nearest) >= value else up(nearest)
