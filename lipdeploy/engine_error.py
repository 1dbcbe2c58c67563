"""How far an engine's features and logits can be from exact, for all inputs at once.

The bounds are affine in the distance t = ||x - c|| of the input from a fixed image c of one colour.
Any c is sound; the one that the network itself subtracts first makes them tight. With h_l the exact
value after layer l and L_l the product of the norms up to there,

    ||h_l(x)|| <= ||h_l(c)|| + L_l t,

and ||h_l(c)|| is computed once, in float64, with its own error added. Layer by layer, with a, b the
errors of `lipdeploy.rounding` for that layer, the distance of the computed from the exact value is

    e_out <= (L + a) e_in + a ||h_in(x)|| + b,

and the bias adds one rounding of each entry: u (||h_out(x)|| + e_out). Activations, slices and
rearrangements are exact, keep distances or make them smaller, and do not raise norms; so does
projection pooling, but that it is rounded, by c + r ||h_in|| (`Rounding.distance_of_pairs`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lipdeploy.arithmetic import FLOAT64, Arithmetic
from lipdeploy.bounds import frobenius_upper, row_norms_upper, up
from lipdeploy.directed import MARGIN, AffineBound
from lipdeploy.errors import BoundError
from lipdeploy.frozen import (
    EXACT,
    Colour,
    FrozenNetwork,
    Linear,
    Operation,
    ProjectionPooling,
)
from lipdeploy.rounding import Rounding

Array = NDArray[np.float64]

LARGEST_PIXEL = 255


@dataclass(frozen=True)
class EngineErrors:
    """Bounds for one arithmetic and accumulation, as functions of ||x - c||.

    Attributes:
        features: of the l2 distance between the engine's features and the exact ones.
        logits: of the error of a difference of two logits, given the engine's own features.
        slopes: see `lipdeploy.heads.Head.slope_error`.
    """

    features: AffineBound
    logits: AffineBound
    slopes: AffineBound

    def times(self, factor: float) -> "EngineErrors":
        """All of them larger by a factor."""
        bounds = (self.features, self.logits, self.slopes)
        return EngineErrors(*(bound.times(factor) for bound in bounds))


def reach(network: FrozenNetwork, arithmetic: Arithmetic) -> float:
    """Distance from c up to which inputs are covered.

    Within twice that no number of the engine overflows, which is proven; beyond it nothing is
    certified. Over four times the distance of any two images; less where the arithmetic ends
    earlier.
    """
    return min(float(4 * LARGEST_PIXEL * 2 * network.image_size), arithmetic.largest / 8)


@dataclass(frozen=True, eq=False)
class ErrorAnalysis:
    """The error bounds of one network around its centre c.

    Attributes:
        network: its stored weights define what is exact.
    """

    network: FrozenNetwork

    @cached_property
    def norms_at_centre(self) -> tuple[tuple[float, float], ...]:
        """Upper bounds of the exact norm at c before each linear layer, and behind its bias."""
        return tuple(self._trace())

    @cached_property
    def feature_norm(self) -> AffineBound:
        """Bound of the norm of the exact features."""
        return AffineBound(self._feature_norm_at_centre, self.network.lipschitz_upper)

    @cached_property
    def _feature_norm_at_centre(self) -> float:
        # The last operations keep norms or make them smaller.
        image = float(frobenius_upper(self._image().reshape(1, -1)))
        return self.norms_at_centre[-1][1] if self.norms_at_centre else image

    def _image(self) -> Array:
        n = self.network.image_size
        colour = np.array(self.network.centre, dtype=np.float64)
        return np.ascontiguousarray(np.broadcast_to(colour, (n, n, 1, 3)))

    def _trace(self) -> Iterator[tuple[float, float]]:
        x, error = self._image(), 0.0
        rounding = Rounding(FLOAT64)
        for operation in self.network.operations:
            norm, largest = _norm_upper(x, error), float(np.abs(x).max()) + error
            x = operation(x)
            if isinstance(operation, ProjectionPooling):
                lost = rounding.distance_of_pairs(x.size, largest)
                error = (error + lost.constant + lost.slope * norm) * MARGIN
            if not isinstance(operation, Linear):
                continue
            step = operation.operator.step(rounding)
            error = (step.norm_upper + step.rounding_upper) * error
            error += step.rounding_upper * norm + step.underflow
            error += 2 * FLOAT64.unit_roundoff * (_norm_upper(x, error)) + rounding.flushed(x.size)
            error *= MARGIN
            yield norm, _norm_upper(x, error)

    def shares(self, rounding: Rounding, distance: float) -> tuple[float, ...]:
        """Each linear layer's share of the rounding error of the features at a distance from c."""
        behind = self.network.lipschitz_upper
        lipschitz, parts = 1.0, []
        for layer, (before, _) in zip(self.network.linear(), self.norms_at_centre, strict=True):
            step = layer.operator.step(rounding)
            lipschitz *= step.norm_upper
            behind /= step.norm_upper
            size = before + lipschitz / step.norm_upper * distance
            parts.append((step.rounding_upper * size + step.underflow) * behind)
        whole = sum(parts)
        return tuple(part / whole for part in parts)

    def errors(self, rounding: Rounding) -> EngineErrors:
        """The bounds in an arithmetic and accumulation.

        Raises:
            BoundError: if a number can overflow, or a weight does not exist in the arithmetic.
        """
        arithmetic = rounding.arithmetic
        reached = np.array([2 * reach(self.network, arithmetic)])
        # What comes in may be stored in fewer bits; subtracting the colour is exact for whole
        # numbers and else one rounding of the difference.
        largest_input = AffineBound(float(LARGEST_PIXEL * 2 * self.network.image_size), 1.0)
        error = largest_input.times(arithmetic.storage_roundoff)
        error = error.plus(AffineBound(0.0, 1.0).times(rounding.entry_roundoff))
        lipschitz, after = 1.0, largest_input
        norms = iter(self.norms_at_centre)
        side, channels = self.network.image_size, 3
        for operation in self.network.operations:
            side, channels = operation.shape_after((side, channels))
            size = side**2 * channels
            if isinstance(operation, ProjectionPooling):
                values = after.plus(error)
                lost = rounding.distance_of_pairs(size, float(values(reached)[0]))
                error = error.plus(values.times(lost.slope)).plus(AffineBound(lost.constant, 0.0))
            if not isinstance(operation, Linear):
                check_known(operation)
                continue
            norm_before, norm_after = next(norms)
            step = operation.operator.step(rounding)
            before = AffineBound(norm_before, lipschitz)
            lipschitz = up(lipschitz * step.norm_upper)
            after = AffineBound(norm_after, lipschitz)
            incoming = before.plus(error)
            partial = incoming.times(2 * step.growth)
            error = error.times(step.norm_upper + step.rounding_upper)
            error = error.plus(before.times(step.rounding_upper))
            flushed = step.underflow + rounding.flushed(size)
            error = error.plus(AffineBound(flushed, 0.0))
            # Of the operator's nodes, with the bias, and by the head, which reads what comes out.
            largest = incoming.times(step.results).plus(after).plus(error).times(2.0)
            is_safe = np.all(largest(reached) < arithmetic.largest)
            if not is_safe or not np.all(partial(reached) < arithmetic.largest_sum):
                raise BoundError(f"numbers of this network can overflow in {arithmetic.name}")
            error = error.plus(after.plus(error).times(rounding.entry_roundoff))
        norm = self.feature_norm.plus(error)
        logits = self.network.head.logit_error(rounding.of_head, norm, float(reached[0]))
        slopes = self.network.head.slope_error(rounding.of_head, norm)
        numbers = [n for b in (error, logits, slopes) for n in (b.constant, b.slope)]
        if not np.all(np.isfinite(numbers)):
            raise BoundError(f"the error bounds overflow in {arithmetic.name}")
        return EngineErrors(error, logits, slopes)


def check_known(operation: Operation) -> None:
    """Raise BoundError for an operation whose rounding nobody has counted."""
    if not isinstance(operation, (*EXACT, ProjectionPooling)):
        raise BoundError(f"{type(operation).__name__} has no bound of its rounding")


def distances_upper(pixels: Array, centre: Colour) -> Array:
    """Upper bounds of ||x - c||, shape (batch, 3, n, n) -> (batch,)."""
    colour = np.array(centre, dtype=np.float64)[:, None, None]
    rows = (pixels - colour).reshape(len(pixels), math.prod(pixels.shape[1:]))
    distances: Array = row_norms_upper(rows)
    return distances * (1 + 2.0**-52)


def _norm_upper(x: Array, error: float) -> float:
    return (float(frobenius_upper(x.reshape(1, -1))) + error) * MARGIN
