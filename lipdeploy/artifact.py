"""The manifest that an engine file carries, and the engine that a file is."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.arithmetic import ARITHMETICS, FLOAT64, PRECISIONS, Arithmetic
from lipdeploy.built import Built
from lipdeploy.choices import check_class_names
from lipdeploy.directed import CLAIM, AffineBound
from lipdeploy.engine_error import EngineErrors, ErrorAnalysis
from lipdeploy.errors import ModelError
from lipdeploy.frozen import FrozenNetwork, product_upper
from lipdeploy.rounding import (
    ACCUMULATIONS,
    LARGEST_LIMIT,
    SHORTEST_LIMIT,
    STANDARD,
    Accumulation,
    Rounding,
)
from lipdeploy.structure import describe, restore

Weights = NDArray[Any]

FORMAT = "lipdeploy-engine"
FORMAT_VERSION = 4
MAX_MANIFEST_LENGTH = 1 << 20
MAX_MANIFEST_DEPTH = 12
PLAIN_FIELDS = {
    "network": dict,
    "classes": list,
    "preprocessing": dict,
    "layers": list,
    "proof": str,
    "arithmetic": str,
    "accumulation": str,
    "guarantee": str,
    "sha256": str,
    "source": dict,
    "versions": dict,
}
"""Types of the manifest's fields in JSON, besides the bounds."""

MANIFEST_KEY = "lipdeploy_manifest"
"""Under which an engine file's metadata holds the manifest."""

DTYPES = ("float16", "float32")


def digest(description: dict[str, Any], weights: dict[str, Weights]) -> str:
    """SHA-256 of plain values and arrays: names, types, shapes, little-endian bytes."""
    state = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(weights):
        array = weights[name]
        state.update(f"{name} {array.dtype} {array.shape}\n".encode())
        state.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return state.hexdigest()


@dataclass(frozen=True)
class LayerBound:
    """What was proven of one linear layer.

    Attributes:
        form: the form of its operator.
        norm_upper: upper bound of its norm.
    """

    form: str
    norm_upper: float


@dataclass(frozen=True)
class Manifest:
    """What an engine file says of itself.

    Attributes:
        network: the structure, as `describe` gives it.
        classes: class names in the order of the logits.
        preprocessing: how an image becomes pixels.
        lipschitz_upper: from pixels (0 ... 255) to features.
        layers: the bound of each linear layer.
        arithmetic: the engine's.
        accumulation: what is known of the order of its sums; see `lipdeploy.rounding`.
        longest_sum: terms of the longest sum of a product of its graph; None for no limit.
        errors: error bounds of features and logits under each assumption that its graph allows, by
            name ("float32 same-order"); that of the float64 reference is "float64 any-order".
        canary: distance from float64 of the engine's features on the images of `lipdeploy.canary`,
            measured at the export; 0 if it was not.
        guarantee: the strongest statement that the bounds support.
        proof: how the bounds were proven.
        sha256: `digest` of structure, bounds and weights; finds accidents, not attackers.
        source: dataset, command and epochs of the training, and the hash of the model file.
        versions: versions of what made the file.
    """

    network: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    lipschitz_upper: float
    layers: tuple[LayerBound, ...]
    arithmetic: str
    accumulation: Accumulation
    longest_sum: int | None
    errors: dict[str, EngineErrors]
    canary: float
    guarantee: str
    proof: str
    sha256: str
    source: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def rounding(self) -> Rounding:
        """How the engine computes."""
        return Rounding(ARITHMETICS[self.arithmetic], self.accumulation, self.longest_sum)

    @property
    def engine_errors(self) -> EngineErrors:
        """The error bounds of the engine under its own assumption."""
        return self.errors[self.rounding.name]

    @property
    def reference_errors(self) -> EngineErrors:
        """The error bounds of the float64 reference."""
        return self.errors[REFERENCE.name]

    def with_canary(self, difference: float, weights: dict[str, Weights]) -> "Manifest":
        """The same with what the canary measured, for these weights."""
        changed = replace(self, canary=difference)
        return replace(changed, sha256=changed.digest(weights))

    def digest(self, weights: dict[str, Weights]) -> str:
        """What `sha256` should be for these weights."""
        described = asdict(self)
        kept = ["network", "classes", "preprocessing", "lipschitz_upper", "layers"]
        kept += ["arithmetic", "accumulation", "longest_sum", "errors", "canary", "guarantee"]
        return digest({name: described[name] for name in kept}, weights)

    def to_json(self) -> str:
        """One JSON object, with format and format version."""
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Undo `to_json`.

        Raises:
            ModelError: if it is no manifest, or one of another format version.
        """
        if len(text) > MAX_MANIFEST_LENGTH:
            raise ModelError(f"a manifest of {len(text) >> 20} MiB; export the model again")
        try:
            values = json.loads(text)
            _check_depth(values, MAX_MANIFEST_DEPTH)
            kind, version = values.pop("format"), values.pop("format_version")
            if kind != FORMAT or version != FORMAT_VERSION:
                raise ModelError(
                    f"format {kind} version {version}; this lipdeploy reads {FORMAT} version "
                    f"{FORMAT_VERSION}: export the model again"
                )
            for name, kind in PLAIN_FIELDS.items():
                if not isinstance(values[name], kind):
                    raise ValueError(f"{name}: {values[name]!r}")
            check_class_names(values["classes"])
            values["classes"] = tuple(values["classes"])
            values["layers"] = tuple(
                LayerBound(str(layer["form"]), _positive(layer["norm_upper"]))
                for layer in values["layers"]
            )
            values["lipschitz_upper"] = _positive(values["lipschitz_upper"])
            if not isinstance(values["errors"], dict):
                raise ValueError(f"errors {values['errors']!r}")
            values["errors"] = {name: _errors(entry) for name, entry in values["errors"].items()}
            if values["accumulation"] not in ACCUMULATIONS:
                raise ValueError(f"{values['accumulation']!r}")
            if values["guarantee"] != strongest(ARITHMETICS[values["arithmetic"]]):
                raise ValueError(f"{values['guarantee']!r} in {values['arithmetic']}")
            _check_longest_sum(values["longest_sum"])
            values["canary"] = _not_negative(values["canary"])
            manifest = cls(**values)
            if not {manifest.rounding.name, REFERENCE.name} <= manifest.errors.keys():
                raise ValueError("error bounds are missing")
            return manifest
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
            ArithmeticError,
        ) as error:
            what = "no JSON" if isinstance(error, json.JSONDecodeError) else f"{error!r:.200}"
            raise ModelError(f"the manifest is damaged ({what}); export the model again") from error


@dataclass(frozen=True, eq=False)
class Engine:
    """An engine that was read or just made.

    Attributes:
        name: its file, or what it was made from.
        network: what it runs.
        manifest: what it says of itself.
        data: the bytes of the file, emitted from `network`.
        prepared: the bytes that run: the same graph, casts and cuts of weights, which are exact,
            already done, without the radius, which the host computes.
        size: number of bytes of the file.
        sha256: their hash.
        built: the files of another library, built from this; size and hash are then theirs.
    """

    name: str
    network: FrozenNetwork
    manifest: Manifest
    data: bytes
    prepared: bytes
    size: int
    sha256: str
    built: Built | None = None


def _check_depth(value: object, depth: int) -> None:
    """Raise ValueError for plain values that are nested too deeply."""
    if depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_depth(part, depth - 1)


def _positive(value: object) -> float:
    """A positive finite number; a NaN or a negative bound would certify everything."""
    if not isinstance(value, float | int) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no bound")
    return float(value)


def _errors(entry: dict[str, dict[str, float]]) -> EngineErrors:
    """Error bounds; 0 is one of them, a NaN or a negative number is not."""
    bounds = {
        name: AffineBound(_not_negative(bound["constant"]), _not_negative(bound["slope"]))
        for name, bound in entry.items()
    }
    return EngineErrors(**bounds)


def _not_negative(value: object) -> float:
    return 0.0 if value == 0 and type(value) in (int, float) else _positive(value)


def strongest(arithmetic: Arithmetic) -> str:
    """The strongest statement that engines of an arithmetic support."""
    return "program" if arithmetic.has_program else "network"


def _check_longest_sum(value: object) -> None:
    """A limit, or none; short sums would be graphs of more nodes than a reader should make."""
    if value is not None and (
        type(value) is not int or not SHORTEST_LIMIT <= value <= LARGEST_LIMIT
    ):
        raise ValueError(f"sums of {value!r}")


REFERENCE = Rounding(FLOAT64, "any-order")
"""How the float64 reference computes, whatever the order of the engine."""

PROOF = "float64 residual of a shifted Cholesky factorisation, for each stored block"


def make_manifest(
    network: FrozenNetwork,
    classes: tuple[str, ...],
    preprocessing: dict[str, Any],
    source: dict[str, Any],
    versions: dict[str, str],
    rounding: Rounding = STANDARD,
) -> Manifest:
    """Prove the bounds of a network and write them down with what it is.

    Args:
        network: what the engine computes.
        classes: names in the order of the logits.
        preprocessing: how an image becomes pixels.
        source: where the network comes from.
        versions: of what made it.
        rounding: how its graph computes.

    Raises:
        BoundError: if a bound cannot be proven.
    """
    norms = [norm * CLAIM for norm in network.layer_norms_upper]
    layers = zip(network.linear(), norms, strict=True)
    analysis = ErrorAnalysis(network)
    roundings = [REFERENCE, *engine_roundings(rounding)]
    manifest = Manifest(
        network=describe(network),
        classes=classes,
        preprocessing=preprocessing,
        lipschitz_upper=product_upper(norms),
        layers=tuple(LayerBound(layer.operator.form, norm) for layer, norm in layers),
        arithmetic=rounding.arithmetic.name,
        accumulation=rounding.accumulation,
        longest_sum=rounding.block,
        errors={r.name: analysis.errors(r).times(CLAIM) for r in roundings},
        canary=0.0,
        guarantee=strongest(rounding.arithmetic),
        proof=PROOF,
        sha256="",
        source=source,
        versions=versions,
    )
    return replace(manifest, sha256=manifest.digest(network.weights()))


def engine_roundings(rounding: Rounding) -> list[Rounding]:
    """The assumptions that hold for a graph if those of `rounding` do, these last.

    Where the order inside of blocks is assumed, what holds without that is of interest, too.
    """
    if rounding.accumulation == "same-order":
        return [replace(rounding, accumulation="any-order"), rounding]
    return [rounding]


def restore_checked(manifest: Manifest, weights: dict[str, Weights]) -> FrozenNetwork:
    """The network of a manifest, after checking that the weights are the ones it was made for.

    Raises:
        ModelError: if a hash, a shape or the number of classes does not fit.
    """
    if any(array.dtype.name not in DTYPES for array in weights.values()):
        raise ModelError(f"weights must be {', '.join(DTYPES)}")
    if manifest.arithmetic not in PRECISIONS:
        raise ModelError(f"bounds for {manifest.arithmetic}; engines compute in {PRECISIONS}")
    if manifest.digest(weights) != manifest.sha256:
        raise ModelError("weights and manifest do not belong together: export the model again")
    network = restore(manifest.network, weights)
    if len(manifest.layers) != len(list(network.linear())):
        raise ModelError("a linear layer without a bound, or a bound without a layer")
    if network.head.classes != len(manifest.classes):
        raise ModelError(f"{len(manifest.classes)} class names for {network.head.classes} classes")
    return network
