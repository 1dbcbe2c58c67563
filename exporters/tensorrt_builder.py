"""What the process does that builds an engine of TensorRT; see `lipdeploy.exporters.tensorrt`."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lipdeploy.errors import ExportError, OutputError
from lipdeploy.files import write_atomically
from lipdeploy.runtimes.cuda import Gpu
from lipdeploy.runtimes.tensorrt import INPUT, OUTPUTS, find_library, message_log

MODEL, SETTINGS, ENGINE, ANSWER = "model.onnx", "settings.json", "engine", "answer.json"
"""Files of the folder: two that are read, then two that are written, the answer last."""

TYPES = ("FLOAT", "INT32", "INT64", "BOOL")
"""What values of a network may be: numbers in float32, indices and conditions."""

HALVES = {"float16": "HALF", "bfloat16": "BF16"}
"""And by the precision that was asked for."""


def main(folder: str) -> None:
    """Build the engine that the files of a folder describe, and write it there."""
    place = Path(folder)
    asked = json.loads((place / SETTINGS).read_text())
    try:
        data, answer = build_here((place / MODEL).read_bytes(), asked)
        (place / ENGINE).write_bytes(data)
    except ExportError as error:
        answer = {"error": str(error)}
    write_atomically(json.dumps(answer).encode(), place / ANSWER)


def build_here(onnx_bytes: bytes, asked: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Build an engine in this process.

    Args:
        onnx_bytes: the model.
        asked: the package, profile, GPU, and whether it should be portable.

    Returns:
        The engine; `versions`, and the `settings` that are not in `asked`.

    Raises:
        ExportError: if the model is refused.
    """
    package, library = asked["package"], find_library(asked["package"])
    if library is None:
        raise ExportError(f"{package} is not installed")
    version, log = str(library.__version__), message_log(library)
    builder = library.Builder(log)
    network = _parsed(package, library, builder, onnx_bytes)
    check_network(network, asked["precision"])
    config = builder.create_builder_config()
    _set_tf32(library, config, is_wanted=asked["precision"] == "tf32")
    compatibility = _compatibility(package, library, config, asked["portable"])
    config.add_optimization_profile(_shapes(builder, network, asked["profile"]))
    with _timings(config, f"{package} {version}", asked["gpu"]):
        memory = builder.build_serialized_network(network, config)
    if memory is None:
        raise ExportError(f"{package} cannot build the engine ({log.take()})")
    parser = str(library.get_nv_onnx_parser_version())
    settings = {"version": version, "flags": _flags(library, config), **compatibility}
    versions = {package: version, f"{package} parser": parser}
    return bytes(memory), {"versions": versions, "settings": settings}


def _parsed(package: str, library: Any, builder: Any, onnx_bytes: bytes) -> Any:  # noqa: ANN401
    """The network of a model; raises ExportError for the first thing that is refused."""
    # The only kind of network in TensorRT 11, where the flag is ignored or gone.
    typed = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = library.OnnxParser(network, builder.logger)
    if not parser.parse(onnx_bytes):
        error = parser.get_error(0)
        node = f"node {error.node_name()!r} ({error.node_operator()})"
        reason = " ".join(error.desc().split())
        place = node if error.node_operator() else "the model"
        raise ExportError(f"{package} refuses {place}: {reason:.300}")
    return network


def check_network(network: Any, precision: str = "float32") -> None:  # noqa: ANN401
    """Raise ExportError unless a network goes from pixels to features, logits and radius.

    These are float32; between them there may be numbers of the precision that was asked for, too.
    """
    types = {*TYPES, HALVES.get(precision, "FLOAT")}
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    names = [tensor.name for tensor in inputs], [tensor.name for tensor in outputs]
    if names != ([INPUT], list(OUTPUTS)):
        raise ExportError(
            f"a network from {names[0]} to {names[1]}; expected one from {INPUT} to "
            f"{', '.join(OUTPUTS)}"
        )
    for tensor in inputs + outputs:
        if tensor.dtype.name != "FLOAT" or tensor.shape[0] != -1:
            raise ExportError(
                f"{tensor.name} is {tensor.dtype.name} {tuple(tensor.shape)}; expected FLOAT and "
                "batches of any size"
            )
    for index in range(network.num_layers):
        _check_types(network.get_layer(index), types)


def _check_types(layer: Any, types: set[str]) -> None:  # noqa: ANN401
    """Raise ExportError for a layer that computes in other types.

    In a strongly typed network a layer computes in the types of its values.
    """
    found = {layer.get_output_type(i).name for i in range(layer.num_outputs)}
    if not found <= types:
        raise ExportError(
            f"layer {layer.name!r} ({layer.type.name}) computes in {', '.join(sorted(found))}; "
            f"expected {', '.join(sorted(types))}"
        )


def _set_tf32(library: Any, config: Any, *, is_wanted: bool) -> None:  # noqa: ANN401
    """TF32 is on by default, and cuts factors to 11 bits."""
    flag = getattr(library.BuilderFlag, "TF32", None)
    if flag is None:
        return
    if is_wanted:
        config.set_flag(flag)
        return
    config.clear_flag(flag)
    if config.get_flag(flag):
        raise ExportError("TF32 cannot be switched off: the engine would not compute in float32")


def _compatibility(
    package: str,
    library: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
    is_portable: bool,
) -> dict[str, Any]:
    """Make an engine portable where that can be chosen; gives what it needs then."""
    # Its engines run on all GPUs that it knows, and in no other version.
    if package == "tensorrt_rtx":
        return {"version_compatible": False, "hardware": "any"}
    if is_portable:
        config.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
        config.hardware_compatibility_level = library.HardwareCompatibilityLevel.AMPERE_PLUS
    return {
        "version_compatible": is_portable,
        "hardware": "ampere-or-newer" if is_portable else "same-gpu",
    }


def _shapes(builder: Any, network: Any, batches: Mapping[str, int]) -> Any:  # noqa: ANN401
    """The optimisation profile."""
    image = tuple(network.get_input(0).shape)[1:]
    shapes = [(batches[name], *image) for name in ("least", "best", "most")]
    optimisation = builder.create_optimization_profile()
    optimisation.set_shape(INPUT, *shapes)
    return optimisation


def _flags(library: Any, config: Any) -> list[str]:  # noqa: ANN401
    """Names of the flags that are set."""
    flags = library.BuilderFlag.__members__.items()
    return sorted(name for name, flag in flags if config.get_flag(flag))


@contextmanager
def _timings(config: Any, version: str, gpu: Mapping[str, str] | None) -> Iterator[None]:  # noqa: ANN401
    """Remember how fast kernels were, so that the next build chooses the same ones.

    TensorRT for RTX measures nothing when it builds.
    """
    if gpu is None or version.startswith("tensorrt_rtx "):
        yield
        return
    from lipdeploy.exporters.tune import default_cache

    name = re.sub(r"\W+", "-", f"{version} {Gpu(**gpu)}")
    path, stored = default_cache().parent / f"{name}.timing", b""
    with suppress(OSError):
        stored = path.read_bytes()
    cache = config.create_timing_cache(stored) or config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    yield
    with suppress(OSError, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(bytes(config.get_timing_cache().serialize()), path)
