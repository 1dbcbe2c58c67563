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
DTYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}


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
        return parse_onnx(_read(path), str(path))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _read(path: Path) -> bytes:
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "no such file"
        raise ModelError(f"{kind}; expected an engine written by 'lipdeploy export'")
    try:
        if path.stat().st_size >= MAX_BYTES + MAX_STRUCTURE_BYTES:
            raise ModelError("larger than an ONNX file can be (2 GiB)")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror}); check its permissions") from error


def parse_onnx(data: bytes, name: str) -> Engine:
    """The engine in the bytes of a file; raises ModelError as `read_onnx`.

    The weights are read, the network restored from them, and its graph emitted again: the file must
    be that graph, byte for byte, and what was emitted is what runs. So what a runtime executes is
    what was certified, and nothing else in a foreign file ever reaches it.
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
    manifest = Manifest.from_json(properties[MANIFEST_KEY])
    network = restore_checked(manifest, weights)
    emitted = _emit_again(model, network, manifest)
    return Engine(name, network, manifest, emitted, len(data), hashlib.sha256(data).hexdigest())


def stored_weights(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The network's arrays by name; raises ModelError where they are in other files."""
    tensors = list(model.graph.initializer)
    if any(t.data_location == onnx.TensorProto.EXTERNAL or t.external_data for t in tensors):
        raise ModelError(
            "keeps weights in other files, which lipdeploy never reads; export the model again"
        )
    arrays = {t.name: numpy_helper.to_array(t) for t in tensors if t.data_type in DTYPES}
    named = {name: a for name, a in arrays.items() if name.startswith(("layer", "head."))}
    # A bias per position has an axis for the batch in the graph; the transposed basis is a copy.
    return {
        name: a[:, :, 0] if name.endswith(".bias") and a.ndim == 4 and a.shape[2] == 1 else a
        for name, a in named.items()
        if not name.endswith(".basis_transposed")
    }


def _emit_again(model: onnx.ModelProto, network: FrozenNetwork, manifest: Manifest) -> bytes:
    try:
        emitted = build_model(network, manifest)
    except (LipdeployError, ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"the network in the file has no graph ({error})") from error
    if _program(emitted) != _program(model):
        raise ModelError(
            "the file runs other operations than its network has, or was written by another "
            "version of lipdeploy; export the model again"
        )
    return bytes(emitted.SerializeToString())


def _program(model: onnx.ModelProto) -> bytes:
    """What is run: everything but who wrote the file and what it says of itself."""
    program = onnx.ModelProto()
    program.CopyFrom(model)
    for name in ("metadata_props", "producer_name", "producer_version"):
        program.ClearField(name)
    return bytes(program.SerializeToString(deterministic=True))
