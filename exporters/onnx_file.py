"""ONNX files: the bytes of an engine, and reading one back without trusting it."""

import hashlib
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from lipdeploy.artifact import MANIFEST_KEY, Engine, Manifest, restore_checked
from lipdeploy.errors import ExportError, LipdeployError, ModelError
from lipdeploy.exporters.onnx import build_model
from lipdeploy.exporters.onnx_wire import MAX_STRUCTURE_BYTES, structure_bytes
from lipdeploy.frozen import FrozenNetwork

MAX_BYTES = 2 << 30
DTYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


def onnx_bytes(network: FrozenNetwork, manifest: Manifest) -> bytes:
    """The content of the ONNX file of a network.

    Raises:
        ExportError: if it would be larger than 2 GiB.
    """
    size = sum(array.nbytes for array in network.weights().values())
    if size >= MAX_BYTES:
        raise ExportError(
            f"{size / 2**30:.1f} GiB of weights do not fit into one ONNX file (2 GiB); "
            "use a smaller width, or --weights float16"
        )
    model = build_model(network, manifest)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def read_onnx(path: Path) -> Engine:
    """Read a file written by `lipdeploy export --engine onnx`.

    Raises:
        ModelError: if the file is missing, damaged, foreign, holds other weights than its manifest,
            or other operations than its network.
    """
    try:
        return parse_onnx(read_bytes(path), str(path))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file that may be an engine; raises ModelError if it cannot be read."""
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "no such file"
        raise ModelError(f"{kind}; expected an engine written by 'lipdeploy export'")
    try:
        if path.stat().st_size >= MAX_BYTES + MAX_STRUCTURE_BYTES:
            raise ModelError("larger than an ONNX file can be (2 GiB)")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror}); check its permissions") from error
    if not data:
        raise ModelError("an empty file; make one with 'lipdeploy export'")
    return data


def parse_onnx(data: bytes, name: str) -> Engine:
    """The engine in the bytes of a file; raises ModelError as `read_onnx`.

    The weights are read, the network restored from them, and its graph emitted again: the file must
    be that graph, byte for byte, and what was emitted is what runs. So what a runtime executes is
    what was certified, and nothing else in a foreign file ever reaches it.
    """
    model, manifest_text, weights = open_onnx(data)
    manifest = Manifest.from_json(manifest_text)
    network = restore_checked(manifest, weights)
    emitted = _emit_again(model, network, manifest)
    answering = build_model(network, manifest, prepared=True, with_radius=False)
    prepared = bytes(answering.SerializeToString())
    sha256 = hashlib.sha256(data).hexdigest()
    return Engine(name, network, manifest, emitted, prepared, len(data), sha256)


def served_bytes(engine: Engine) -> bytes:
    """The graph of an engine for those who run it without lipdeploy: prepared, with the radius."""
    model = build_model(engine.network, engine.manifest, prepared=True)
    return bytes(model.SerializeToString())


def open_onnx(data: bytes) -> tuple[onnx.ModelProto, str, dict[str, NDArray[Any]]]:
    """The model, the manifest's text and the stored arrays, nothing checked against each other.

    Raises:
        ModelError: if the bytes are no ONNX file of lipdeploy.
    """
    try:
        if structure_bytes(data) > MAX_STRUCTURE_BYTES:
            raise ModelError("more structure than weights; not an engine of lipdeploy")
        model = onnx.load_model_from_string(data)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        weights = stored_weights(model)
    except ModelError:
        raise
    # The parser raises protobuf's own error types, which differ between its versions, and hostile
    # names, shapes and lengths raise many others.
    except Exception as error:
        raise ModelError(
            "not an engine (an ONNX file), or a damaged one; make one with 'lipdeploy export'"
        ) from error
    if MANIFEST_KEY not in properties:
        raise ModelError("an ONNX file, but not one of lipdeploy; make one with 'lipdeploy export'")
    return model, properties[MANIFEST_KEY], weights


def stored_weights(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The network's arrays by name; raises ModelError where they are in other files."""
    tensors = list(model.graph.initializer)
    if any(t.data_location == onnx.TensorProto.EXTERNAL or t.external_data for t in tensors):
        raise ModelError(
            "keeps weights in other files, which lipdeploy never reads; export the model again"
        )
    arrays = {t.name: numpy_helper.to_array(t) for t in tensors if t.data_type in DTYPES}
    return {name: a for name, a in arrays.items() if name.startswith(("layer", "head."))}


def _emit_again(model: onnx.ModelProto, network: FrozenNetwork, manifest: Manifest) -> bytes:
    try:
        # The graph in the file has as many, or is another one.
        emitted = build_model(network, manifest, most_nodes=len(model.graph.node))
    except (LipdeployError, ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"the network in the file has no graph ({error})") from error
    difference = file_difference(model, emitted)
    if difference is not None:
        raise ModelError(
            f"the file runs other operations than its network has ({difference}), or was written "
            "by another version of lipdeploy; export the model again"
        )
    return bytes(emitted.SerializeToString())


def file_difference(model: onnx.ModelProto, emitted: onnx.ModelProto) -> str | None:
    """What is another program in a file than in the graph emitted from its weights, or None."""
    if _program(emitted) == _program(model):
        return None
    return graph_difference(model, emitted) or "inputs, outputs or annotations differ"


def graph_difference(found: onnx.ModelProto, expected: onnx.ModelProto) -> str | None:
    """The first difference of nodes and constants, in words, or None."""
    if len(found.graph.node) != len(expected.graph.node):
        return f"{len(found.graph.node)} nodes instead of {len(expected.graph.node)}"
    nodes = {node.name: node.SerializeToString() for node in expected.graph.node}
    for node in found.graph.node:
        if nodes.get(node.name) != node.SerializeToString():
            return f"node {node.name[:100]!r} ({node.op_type[:100]}) is another one"
    constants = {t.name: t for t in expected.graph.initializer}
    if {t.name for t in found.graph.initializer} != constants.keys():
        return "other constants"
    for tensor in found.graph.initializer:
        a, b = numpy_helper.to_array(tensor), numpy_helper.to_array(constants[tensor.name])
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            return f"constant {tensor.name[:100]!r} is another one"
    return None


def _program(model: onnx.ModelProto) -> bytes:
    """What is run: everything but who wrote the file and what it says of itself."""
    program = onnx.ModelProto()
    program.CopyFrom(model)
    for name in ("metadata_props", "producer_name", "producer_version"):
        program.ClearField(name)
    return bytes(program.SerializeToString(deterministic=True))
