"""What is in a file: an engine, a trained model, or a checkpoint, in plain values."""

from dataclasses import asdict
from typing import Any

from lipdeploy.artifact import Engine
from lipdeploy.frozen import Linear, Operation
from lipdeploy.heads import Head

KINDS = {
    "onnx": "engine (ONNX)",
    "openvino": "engine (OpenVINO)",
    "tensorrt": "engine (TensorRT)",
}


def inspect_engine(engine: Engine) -> dict[str, Any]:
    """Everything that an engine file says of itself, and what its parts cost."""
    network, manifest = engine.network, engine.manifest
    return {
        "path": engine.name,
        "kind": KINDS[engine.built.record.kind if engine.built else "onnx"],
        "bytes": engine.size,
        "sha256": engine.sha256,
        "content_sha256": manifest.sha256,
        "classes": list(manifest.classes),
        "image_size": network.image_size,
        "preprocessing": manifest.preprocessing,
        "operations": _operations(engine),
        "parameters": sum(weights.size for weights in network.weights().values()),
        "lipschitz_upper": manifest.lipschitz_upper,
        "lipschitz_upper_unit": "l2 of the features for each step of 1 of a pixel in 0 ... 255",
        # Of its own library, whose roundings nobody knows, neither their order nor their number.
        "guarantee": "network" if engine.built else manifest.guarantee,
        "arithmetic": manifest.arithmetic,
        "accumulation": manifest.accumulation,
        "longest_sum": manifest.longest_sum,
        "canary": manifest.canary,
        "feature_errors": {name: asdict(e.features) for name, e in manifest.errors.items()},
        "proof": manifest.proof,
        "source": manifest.source,
        "versions": manifest.versions,
        "build": asdict(engine.built.record) if engine.built else None,
    }


def _operations(engine: Engine) -> list[dict[str, Any]]:
    bounds = iter(engine.manifest.layers)
    body = [
        _linear(operation, next(bounds).norm_upper)
        if isinstance(operation, Linear)
        else _plain(operation)
        for operation in engine.network.operations
    ]
    return [*body, _head(engine.network.head)]


def _plain(operation: Operation) -> dict[str, Any]:
    return {"kind": operation.kind, "bytes": 0}


def _linear(layer: Linear, norm_upper: float) -> dict[str, Any]:
    operator = layer.operator
    weights = [*operator.weights().values(), layer.bias]
    return {
        "kind": layer.kind,
        "form": operator.form,
        "parameters": operator.parameters(),
        "grid": operator.grid,
        "in_channels": operator.in_channels,
        "out_channels": operator.out_channels,
        "stored_as": sorted({array.dtype.name for array in weights}),
        "bytes": sum(array.nbytes for array in weights),
        "norm_upper": norm_upper,
    }


def _head(head: Head) -> dict[str, Any]:
    weights = head.weights().values()
    return {
        "kind": f"{head.kind} head",
        "features": head.features,
        "classes": head.classes,
        "stored_as": sorted({array.dtype.name for array in weights}),
        "bytes": sum(array.nbytes for array in weights),
    }
