"""A model repository for Triton Inference Server: one folder that it serves as it is.

    <folder>/<name>/config.pbtxt    inputs, outputs, and the settings that the radius needs
    <folder>/<name>/labels.txt      class names in the order of the logits
    <folder>/<name>/1/<file>        what the backend loads

The configuration is that of `model_config.proto` of triton-inference-server/common.
"""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lipdeploy.artifact import Engine
from lipdeploy.certificate import assumptions
from lipdeploy.errors import ExportError, OutputError, UsageError
from lipdeploy.exporters.onnx_file import served_bytes
from lipdeploy.files import make_writable_folder, not_writable, write_atomically
from lipdeploy.mlp_head import MlpHead

Platform = Literal["onnxruntime_onnx", "tensorrt_plan"]

CONFIG, LABELS, VERSION = "config.pbtxt", "labels.txt", "1"
MARK = "# Written by lipdeploy, which replaces this folder as a whole."
"""First line of a configuration that may be replaced."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

# Of that backend's graph levels -1 means basic optimisations and 2 none. use_tf32 is an option of
# the CUDA provider and counts where an instance is on a GPU.
SETTINGS: dict[Platform, str] = {
    "onnxruntime_onnx": """\
optimization {
  graph { level: 2 }
  execution_accelerators {
    gpu_execution_accelerator [
      { name: "cuda" parameters { key: "use_tf32" value: "0" } }
    ]
  }
}
""",
    "tensorrt_plan": "",
}

NOTES: dict[Platform, str] = {
    "onnxruntime_onnx": """\
Graph level 2 turns the optimiser of ONNX Runtime off, use_tf32 0 turns TF32 off on a GPU. With
other settings another program runs, and nothing is guaranteed. Backends that do not know these
settings yet must not be used: level 2 is of 2023, the accelerator "cuda" of June 2024.""",
    "tensorrt_plan": """\
TensorRT makes a program of its own from the graph, so the first line holds only as far as that
program keeps it: float32, without TF32. Nothing checks that on the server.""",
}

ORDER_NOTE = (
    "On the server that order is not tested: 'lipdeploy predict' does it where it runs itself."
)


def write_triton(
    engine: Engine,
    folder: Path,
    *,
    name: str,
    platform: Platform,
    file: bytes,
    file_name: str,
    max_batch: int = 256,
) -> Path:
    """Write an engine into a model repository.

    Everything is written beside the model's folder and then renamed, so that no half of a model is
    ever there; an older one of lipdeploy is replaced, and kept until the new one is in its place.

    Args:
        engine: what is served.
        folder: the repository; made where there is none.
        name: of the model, and of its folder.
        platform: which backend loads it.
        file: what it loads; for ONNX Runtime the bytes of the engine, best those of `served_bytes`.
        file_name: its name, such as "model.onnx" or "model.plan".
        max_batch: images that the server may put into one batch.

    Returns:
        The model's folder.

    Raises:
        UsageError: if a name or the batch size is none.
        ExportError: if the bytes for ONNX Runtime are not those of the engine.
        OutputError: if it cannot be written, or there is something that lipdeploy did not write.
    """
    files = {file_name: file}
    _check(engine, name, platform, files, max_batch)
    make_writable_folder(folder)
    target = folder / name
    _check_replaceable(target)
    content = {
        CONFIG: config_text(engine, name, platform, file_name, max_batch).encode(),
        LABELS: "".join(f"{label}\n" for label in engine.manifest.classes).encode(),
        **{f"{VERSION}/{path}": data for path, data in files.items()},
    }
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as scratch:
            new = Path(scratch, "new")
            (new / VERSION).mkdir(parents=True)
            for path, data in content.items():
                write_atomically(data, new / path)
            _put(new, target, Path(scratch, "old"))
    except OSError as error:
        raise not_writable(target, error) from error
    return target


def serve(engine: Engine, folder: Path, name: str) -> Path:
    """Write what `lipdeploy predict` runs, and the radius, into a repository; as `write_triton`."""
    if engine.built is None:
        return write_triton(
            engine,
            folder,
            name=name,
            platform="onnxruntime_onnx",
            file=served_bytes(engine),
            file_name="model.onnx",
        )
    (data,) = engine.built.files.values()
    return write_triton(
        engine,
        folder,
        name=name,
        platform="tensorrt_plan",
        file=data,
        file_name="model.plan",
        max_batch=engine.built.record.settings["profile"]["most"],
    )


def check_plan(package: str) -> None:
    """Raise ExportError for engines of a package that Triton does not load."""
    if package != "tensorrt":
        raise ExportError(
            "--triton: Triton loads plans of TensorRT, and this would be an engine of TensorRT for "
            "RTX; pip install 'lipdeploy[trt]' on the GPU of the server, or use --engine onnx"
        )


def config_text(
    engine: Engine, name: str, platform: Platform, file_name: str, max_batch: int
) -> str:
    """The configuration, in protobuf's text format."""
    n, head = engine.network.image_size, engine.network.head
    # An output needs a dimension besides the batch: the number of an image is a vector of one.
    return f"""\
{MARK}
{_comment(engine, platform)}
name: "{name}"
platform: "{platform}"
default_model_filename: "{file_name}"
max_batch_size: {max_batch}
input [
  {{ name: "pixels" data_type: TYPE_FP32 dims: [ 3, {n}, {n} ] }}
]
output [
  {{ name: "features" data_type: TYPE_FP32 dims: [ {head.features} ] }},
  {{ name: "logits" data_type: TYPE_FP32 dims: [ {head.classes} ] label_filename: "{LABELS}" }},
  {{ name: "radius" data_type: TYPE_FP32 dims: [ 1 ] reshape {{ shape: [ ] }} }}
]
dynamic_batching {{ }}
{SETTINGS[platform]}"""


def _comment(engine: Engine, platform: Platform) -> str:
    """What the inputs and the radius are, and what the radius rests on."""
    rounding, is_mlp = engine.manifest.rounding, isinstance(engine.network.head, MlpHead)
    order = [ORDER_NOTE] if rounding.accumulation == "same-order" else []
    lines = [
        f"Engine {engine.sha256}",
        "",
        "pixels: red, green and blue planes, 0 ... 255, resized as lipdeploy resizes them.",
        "radius: guaranteed l2 radius around the pixels, on a scale from 0 to 1; 0 where there is",
        "none. Within it the server gives the same class, as far as these hold:",
        *(f"- {line}" for line in assumptions("program", rounding.name, is_mlp=is_mlp)),
        *order,
        "",
        *NOTES[platform].splitlines(),
    ]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _check(
    engine: Engine, name: str, platform: Platform, files: Mapping[str, bytes], max_batch: int
) -> None:
    for given in (name, *files):
        if not PLAIN_NAME.fullmatch(given):
            raise UsageError(
                f"--triton: {given!r} is no name for a model; use letters, digits, '_', '-' and '.'"
            )
    if max_batch < 1:
        raise UsageError(f"--triton: batches of {max_batch} images; expected at least 1")
    served = next(iter(files.values()))
    is_stored = platform != "onnxruntime_onnx" or served == engine.data
    if not is_stored and served != served_bytes(engine):
        raise ExportError("the bytes for ONNX Runtime are not those of the engine; export it again")


def _check_replaceable(target: Path) -> None:
    """Raise OutputError if there is something else than a model that lipdeploy wrote."""
    if not target.exists() and not target.is_symlink():
        return
    try:
        is_ours = {path.name for path in target.iterdir()} <= {CONFIG, LABELS, VERSION}
        is_ours &= (target / CONFIG).read_bytes().startswith(MARK.encode())
    except OSError:
        is_ours = False
    if not is_ours:
        raise OutputError(
            f"{target}: is there and not, or not only, from lipdeploy; give another folder or "
            "model name, or remove it"
        )


def _put(new: Path, target: Path, old: Path) -> None:
    """Rename one folder to the place of another, which is moved to `old`."""
    is_there = target.exists()
    if is_there:
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if is_there:
            old.rename(target)
        raise
