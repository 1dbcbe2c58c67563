"""OpenVINO's own files of an engine, weights in float32."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipdeploy.artifact import Engine
from lipdeploy.errors import EngineError, ExportError


@dataclass(frozen=True)
class OpenVinoFiles:
    """What OpenVINO writes.

    Attributes:
        files: content by suffix, ".xml" and ".bin".
        versions: of what wrote them.
    """

    files: dict[str, bytes]
    versions: dict[str, str]


def import_openvino() -> Any:  # noqa: ANN401
    """The library; raises ExportError where it cannot be imported."""
    try:
        import openvino
    except ImportError as error:
        raise ExportError("OpenVINO is not installed; pip install 'lipdeploy[openvino]'") from error
    return openvino


def build_openvino(onnx_bytes: bytes) -> OpenVinoFiles:
    """The intermediate representation of an ONNX engine; no weight is compressed to float16.

    Raises:
        ExportError: if OpenVINO is missing or cannot read the graph.
    """
    openvino = import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        try:
            model = openvino.Core().read_model(onnx_bytes)
            # Else named after a counter of the process, which would make every build another file.
            for index, node in enumerate(model.get_ordered_ops()):
                if node.get_friendly_name() == node.get_name():
                    node.set_friendly_name(f"{node.get_type_name()}-{index}")
            openvino.save_model(model, path, compress_to_fp16=False)
        # OpenVINO raises RuntimeError and others for whatever it does not know.
        except Exception as error:
            reason = str(error).strip().split("\n", maxsplit=1)[0]
            raise ExportError(f"OpenVINO cannot read the graph ({reason:.200})") from error
        files = {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")}
    return OpenVinoFiles(files, {"openvino": openvino.__version__})


def check_openvino(engine: Engine) -> None:
    """Make sure that OpenVINO's files are those that the ONNX engine gives, byte for byte.

    So nothing that somebody else wrote reaches OpenVINO's reader, and what runs is the graph that
    was certified.

    Raises:
        EngineError: if they are not, another version of OpenVINO wrote them, or there is none.
    """
    built = engine.built
    if built is None or built.record.kind != "openvino":
        return
    try:
        again = build_openvino(engine.prepared)
    except ExportError as error:
        raise EngineError(str(error)) from error
    if again.versions != built.record.versions:
        raise EngineError(
            f"{engine.name}: built with {_names(built.record.versions)}, here is "
            f"{_names(again.versions)}; type '{built.rebuild}'"
        )
    if again.files != built.files:
        raise EngineError(
            f"{engine.name}: not what OpenVINO makes of its ONNX engine; type '{built.rebuild}'"
        )


def _names(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
