"""`lipdeploy verify`: what is in an engine file, against what it says of itself.

Two verdicts. *Integrity*: the file is what `export` wrote; hashes find accidents, and whoever can
write a file can write its hash, too. *Soundness*: whoever wrote it, its bounds are true of its
weights, its graph computes what the bounds speak about, and this machine runs that graph in the
arithmetic and order that they assume.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx

from lipdeploy.artifact import Manifest
from lipdeploy.built import SUFFIXES, check_whole, onnx_beside
from lipdeploy.canary import check_canary
from lipdeploy.errors import (
    ArithmeticMismatchError,
    EngineError,
    LipdeployError,
    ModelError,
)
from lipdeploy.exporters.engine_file import read_engine
from lipdeploy.exporters.onnx import build_model
from lipdeploy.exporters.onnx_file import (
    file_difference,
    graph_difference,
    open_onnx,
    read_bytes,
)
from lipdeploy.exporters.onnx_probe import keeps_order, keeps_precision
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.images import PREPROCESSING
from lipdeploy.runtimes import hint_for
from lipdeploy.runtimes.choice import open_runtime
from lipdeploy.runtimes.onnx import OnnxRuntime, executed_graph
from lipdeploy.structure import restore
from lipdeploy.verification import Check, check_bounds

PROBE_BATCHES = (1, 64)


def verify(path: Path) -> Iterator[Check]:
    """Check an engine file, line by line; what cannot go on after a failed line is left out.

    Raises:
        ModelError: for a file that only belongs to an engine.
    """
    check_whole(path)
    if path.suffix in SUFFIXES:
        yield from _family(path)
        path = onnx_beside(path)
    try:
        data = read_bytes(path)
        model, text, weights = open_onnx(data)
    except ModelError as error:
        yield Check("integrity", "file", False, str(error))
        return
    sha256 = hashlib.sha256(data).hexdigest()
    yield Check("integrity", "file", True, f"{len(data)} bytes, sha256 {sha256}")
    try:
        manifest = Manifest.from_json(text)
        network = restore(manifest.network, dict(weights))
    except LipdeployError as error:
        yield Check("integrity", "manifest and network", False, str(error))
        return
    yield from _integrity(network, manifest)
    yield from _soundness(model, network, manifest)


def _family(path: Path) -> Iterator[Check]:
    """Whether the files of an engine of another library belong together, and what it rests on."""
    try:
        engine = read_engine(path)
    except ModelError as error:
        yield Check("integrity", "files", False, str(error))
        return
    kind = SUFFIXES[path.suffix]
    yield Check("integrity", "files", True, f"those of {path.name} and its ONNX engine")
    title = f"canary, {kind}"
    if kind == "tensorrt":
        detail = "not run: native code of whoever made it; to be sure build it again from its ONNX"
        yield Check("soundness", title, None, f"{detail} engine")
        return
    try:
        runtime = open_runtime(engine)
        check_canary(engine, runtime)
        detail = f"{runtime.description} is as near to float64 as at the export"
        yield Check("soundness", title, True, detail)
    except ArithmeticMismatchError as error:
        yield Check("soundness", title, False, str(error))
    except LipdeployError as error:
        yield Check("soundness", title, None, f"not checked: {error}")


def _integrity(network: FrozenNetwork, manifest: Manifest) -> Iterator[Check]:
    is_same = manifest.digest(network.weights()) == manifest.sha256
    detail = (
        "weights, bounds and names are " + ("" if is_same else "not ") + "those it was made for"
    )
    yield Check("integrity", "hash", is_same, detail)
    names, classes = len(manifest.classes), network.head.classes
    yield Check(
        "integrity", "classes", names == classes, f"{names} names for {classes} classes of the head"
    )
    expected = {"size": network.image_size, **PREPROCESSING}
    is_same = manifest.preprocessing == expected
    detail = "that of this lipdeploy" if is_same else "another one than this lipdeploy's"
    yield Check("integrity", "preprocessing", is_same, detail)


def _soundness(
    model: onnx.ModelProto, network: FrozenNetwork, manifest: Manifest
) -> Iterator[Check]:
    layers = len(list(network.linear()))
    if layers != len(manifest.layers):
        detail = f"{len(manifest.layers)} bounds for {layers} linear layers"
        yield Check("soundness", "bounds", False, detail)
        return
    yield from check_bounds(network, manifest)
    try:
        difference = file_difference(model, build_model(network, manifest))
        served, answering = (
            build_model(network, manifest, prepared=True, with_radius=with_radius)
            for with_radius in (True, False)
        )
    except (LipdeployError, ValueError, TypeError, OverflowError) as error:
        yield Check("soundness", "graph", False, f"the network has no graph ({error})")
        return
    count = len(model.graph.node)
    detail = difference or f"{count} nodes, emitted again from the weights, are the same"
    yield Check("soundness", "graph", difference is None, detail)
    yield from _execution(served, answering, manifest)


def _execution(
    served: onnx.ModelProto, answering: onnx.ModelProto, manifest: Manifest
) -> Iterator[Check]:
    """What this machine's ONNX Runtime does with the graph that servers get, and predict's."""
    data = bytes(served.SerializeToString())
    hint = hint_for(manifest.source.get("made_for_batch"))
    try:
        runtime = OnnxRuntime(data, "cpu", manifest.arithmetic, hint)
        if not runtime.runs_graph:
            raise EngineError(f"no {manifest.arithmetic} on a CPU")
        found = (_executed_difference(graph) for graph in (served, answering))
        difference = next(filter(None, found), None)
        detail = difference or f"{runtime.description} runs these nodes and weights, none other"
        yield Check("soundness", "executed graph", difference is None, detail)
        passed = all(keeps_precision(runtime, data, batch) for batch in PROBE_BATCHES)
        detail = f"every product is {'' if passed else 'not '}as precise as {manifest.arithmetic}"
        yield Check("soundness", "arithmetic", passed, detail)
        if manifest.accumulation == "same-order":
            passed = all(keeps_order(runtime, data, batch) for batch in PROBE_BATCHES)
            adds = "every product adds" if passed else "not every product adds"
            detail = f"{adds} in the same order for all outputs, batches of {PROBE_BATCHES}"
            yield Check("soundness", "order of sums", passed, detail)
    except EngineError as error:
        yield Check("soundness", "execution", None, f"not checked: {error}")


def _executed_difference(graph: onnx.ModelProto) -> str | None:
    """What ONNX Runtime would run otherwise than it stands there, or None."""
    executed = onnx.load_model_from_string(executed_graph(bytes(graph.SerializeToString())))
    return graph_difference(executed, graph)
