"""Faults put into the package one at a time; `soundness.checks` must notice every one.

A mutation replaces functions wherever the package has imported them, for the time of a `with`
block.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
from onnx import numpy_helper

from lipdeploy import (
    arithmetic,
    bounds,
    certificate,
    directed,
    engine_error,
    frozen,
    heads,
    images,
    mlp_head,
    mlp_margins,
    rounding,
    taylor,
)
from lipdeploy.exporters import onnx as onnx_export
from lipdeploy.exporters import onnx_file, onnx_radius
from lipdeploy.runtimes import onnx as onnx_runtime

Patch = tuple[object, str, Any]


@dataclass(frozen=True)
class Mutation:
    """A fault.

    Attributes:
        name: what is wrong.
        patches: (owner, attribute, replacement); a function of a module is replaced in every
            module of the package that imported it.
    """

    name: str
    patches: tuple[Patch, ...]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The package with this fault."""
        with ExitStack() as stack:
            for owner, attribute, new in self.patches:
                if isinstance(owner, dict):
                    stack.enter_context(patch.dict(owner, {attribute: new}))
                    continue
                for place in _places(owner, attribute):
                    stack.enter_context(patch.object(place, attribute, new))
            yield


def _places(owner: object, attribute: str) -> list[object]:
    """A class, or every module of the package and the suite that has this very function."""
    if isinstance(owner, type):
        return [owner]
    old = getattr(owner, attribute)
    prefixes = ("lipdeploy", "soundness")
    ours = [m for name, m in list(sys.modules.items()) if name.startswith(prefixes)]
    return [m for m in ours if getattr(m, attribute, None) is old]


def _power_iteration(matrices: np.ndarray) -> np.ndarray:
    w = np.asarray(matrices, dtype=np.float64)
    v = np.ones((*w.shape[:-2], w.shape[-1], 1))
    for _ in range(20):
        v = np.swapaxes(w, -1, -2) @ (w @ v)
        v = v / (np.linalg.norm(v, axis=-2, keepdims=True) + 1e-300)
    return np.linalg.norm(w @ v, axis=(-2, -1))


def _with_errors(change: Callable[[engine_error.EngineErrors], engine_error.EngineErrors]) -> Patch:
    original = certificate.Certifier.program_radii

    def program_radii(self: Any, answers: Any, errors: Any) -> Any:
        return original(self, answers, change(errors))

    return certificate.Certifier, "program_radii", program_radii


def _float32(**changes: Any) -> Patch:
    """The arithmetic of engines with other properties."""
    return arithmetic.ARITHMETICS, "float32", replace(arithmetic.FLOAT32, **changes)


def _first_rivals(kind: type, count: int) -> Patch:
    original = kind.radii_lower

    def radii_lower(self: Any, features: Any, labels: Any, *rest: Any, **options: Any) -> Any:
        """Certify against the label and the first `count` classes only."""
        kept = [_cut_head(self, sorted({*range(count), int(label)})) for label in labels.tolist()]
        radii = []
        for index, (head, classes) in enumerate(kept):
            label = np.array([classes.index(int(labels[index]))])
            radii.append(original(head, features[index : index + 1], label, *rest, **options)[0])
        return np.array(radii)

    return kind, "radii_lower", radii_lower


def _cut_head(head: Any, classes: list[int]) -> tuple[Any, list[int]]:
    changes = {"weight": head.weight[classes], "bias": head.bias[classes]}
    if isinstance(head, mlp_head.MlpHead):
        table = np.ix_(classes, classes)
        changes |= {"curvature": head.curvature[table], "lipschitz": head.lipschitz[table]}
    return replace(head, **changes), classes


def _no_slack(kind: type) -> Patch:
    original = kind.radii_lower

    def radii_lower(
        self: Any, features: Any, labels: Any, slack: Any = None, **options: Any
    ) -> Any:
        return original(self, features, labels, heads.NO_SLACK, **options)

    return kind, "radii_lower", radii_lower


def _sloppy_build(*arguments: Any, **options: bool) -> onnx.ModelProto:
    """Weights that reach the runtime are rounded once more."""
    model = BUILD_MODEL(*arguments, **options)
    for tensor in model.graph.initializer if options.get("prepared") else ():
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim > 1:
            rounded = np.clip(array, -6e4, 6e4).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    return model


def _truncated_outputs(self: Any, names: Any, inputs: Any) -> Any:
    """As TF32 does to operands: 11 bits of each input are kept."""
    cut = {}
    for name, value in inputs.items():
        mantissa, exponent = np.frexp(value)
        cut[name] = np.ldexp(np.trunc(mantissa * 2**11) / 2**11, exponent).astype(np.float32)
    return OUTPUTS(self, names, cut)


def _skew_norm_on_the_same_grid(self: taylor.TaylorConv) -> float:
    from lipdeploy.fourier import RealFourier, symbol_factors

    fourier, taps = RealFourier(self.grid), self.taps.astype(float)
    norms = [0.0]
    for frequencies in (fourier.real_frequencies(), fourier.complex_frequencies()):
        if len(frequencies):
            cosines, sines = symbol_factors(frequencies, self.kernel_size, self.grid)
            symbols = np.tensordot(cosines + 1j * sines, taps, axes=1)
            norms.append(float(np.max(np.linalg.norm(symbols, 2, axis=(-2, -1)))))
    return max(norms) * (1 + 1e-12)


def _accumulated_same_order_once(self: rounding.Rounding, product: rounding.Product) -> float:
    """One rounding for the whole sum instead of one for each partial sum."""
    if self.accumulation == "same-order":
        return self.arithmetic.unit_roundoff * product.norm_upper * 2
    return ACCUMULATED(self, product)


def _blocks_not_added(self: rounding.Product, block: int) -> float:
    """The error of one block instead of that of all."""
    return self.absolute_norm_upper / math.sqrt(-(-self.length // block))


def _dual_without_multiplier(margin: Any, radius: Any, curvature: Any, start: Any) -> Any:
    """The multiplier may be smaller than the curvature: q is not convex any more."""
    return DUAL_LOWER(margin, radius, 0 * curvature, start)


def _round_up(values: np.ndarray, relative: float = 1e-14) -> np.ndarray:
    return np.maximum(np.where(np.isfinite(values), values, 0.0) * (1 + 1e-7), 0.0)


def _half(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **options: function(*arguments, **options) / 2


BUILD_MODEL = onnx_export.build_model
OUTPUTS = onnx_runtime.OnnxRuntime.outputs
ACCUMULATED = rounding.Rounding._accumulated
DUAL_LOWER = mlp_margins.dual_lower
GAMMA = arithmetic.Arithmetic.gamma
NOTHING = directed.AffineBound(0.0, 0.0)
RESIZE = images.linear_resize


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "norms from power iteration",
        (
            (bounds, "norms_upper", _power_iteration),
            (bounds, "norm_upper", lambda matrix: float(_power_iteration(matrix))),
        ),
    ),
    Mutation("|W| bounded by W", ((bounds, "absolute_norms_upper", bounds.norms_upper),)),
    Mutation(
        "grid too small for zero padding",
        ((taylor.TaylorConv, "skew_norm_upper", property(_skew_norm_on_the_same_grid)),),
    ),
    Mutation("curvature halved", ((mlp_head, "curvature_upper", _half(mlp_head.curvature_upper)),)),
    Mutation(
        "curvature from power iteration",
        (
            (
                mlp_head,
                "_weighted_norm_squared_upper",
                lambda first, negative: float(
                    _power_iteration(np.sqrt(negative / 4)[:, None] * first) ** 2
                ),
            ),
        ),
    ),
    Mutation(
        "multiplier below the curvature", ((mlp_margins, "dual_lower", _dual_without_multiplier),)
    ),
    Mutation("nine rivals, linear head", (_first_rivals(heads.LinearHead, 10),)),
    Mutation("nine rivals, MLP head", (_first_rivals(mlp_head.MlpHead, 10),)),
    Mutation("slack ignored, linear head", (_no_slack(heads.LinearHead),)),
    Mutation("slack ignored, MLP head", (_no_slack(mlp_head.MlpHead),)),
    Mutation("radii rounded up", ((directed, "round_down", _round_up),)),
    Mutation(
        "e dropped, network",
        ((certificate, "feature_errors_upper", lambda e, r, own: np.zeros(len(own))),),
    ),
    Mutation("e dropped, program", (_with_errors(lambda e: replace(e, features=NOTHING)),)),
    Mutation(
        "e on the ball dropped",
        (_with_errors(lambda e: replace(e, features=e.features.times(0.5))),),
    ),
    Mutation(
        "e at the centre only",
        (_with_errors(lambda e: replace(e, features=replace(e.features, slope=0.0))),),
    ),
    Mutation(
        "the head's arithmetic dropped", (_with_errors(lambda e: replace(e, logits=NOTHING)),)
    ),
    Mutation("u halved", (_float32(unit_roundoff=2.0**-25),)),
    Mutation(
        "sqrt(n) instead of n",
        ((arithmetic.Arithmetic, "gamma", lambda self, n: GAMMA(self, math.isqrt(n))),),
    ),
    Mutation(
        "same order: one rounding a sum",
        ((rounding.Rounding, "_accumulated", _accumulated_same_order_once),),
    ),
    Mutation(
        "blocked: one block's error", ((rounding.Product, "blocks_norm_upper", _blocks_not_added),)
    ),
    Mutation("TF32 left on", ((onnx_runtime.OnnxRuntime, "outputs", _truncated_outputs),)),
    Mutation("weights rounded after certification", ((onnx_export, "build_model", _sloppy_build),)),
    Mutation(
        "radius in the graph without errors",
        (
            (
                onnx_radius._RadiusNodes,
                "affine",
                lambda self, bound, factor=1.0: self.graph.number(0.0),
            ),
        ),
    ),
    Mutation(
        "budget one too large",
        (
            (
                certificate,
                "integer_budget",
                lambda radius: math.ceil((255 * certificate.Fraction(radius)) ** 2),
            ),
        ),
    ),
    Mutation(
        "resize taken as 1-Lipschitz",
        (
            (
                images,
                "linear_resize",
                lambda height, width, size: replace(RESIZE(height, width, size), norm_upper=1.0),
            ),
        ),
    ),
    Mutation(
        "resize error dropped",
        ((certificate, "file_radius", lambda r, e, n: certificate.scale_radius(r, n)),),
    ),
    Mutation(
        "pooling not counted",
        ((rounding.Rounding, "distance_of_pairs", lambda *_: NOTHING),),
    ),
    Mutation("Lipschitz bound halved", ((frozen, "product_upper", _half(frozen.product_upper)),)),
)

assert onnx_file.build_model is BUILD_MODEL
