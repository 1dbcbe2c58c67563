"""Engine files of other libraries than ONNX Runtime: what they were built from, and with what.

Such an engine is a family of files. `NAME.xml` and `NAME.bin` (OpenVINO) or `NAME.engine`
(TensorRT) are what that library runs; beside it lie the ONNX engine that it was built from, which
holds weights, manifest and bounds, and a record that binds them together by their hashes.
"""

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lipdeploy.errors import ModelError

Kind = Literal["openvino", "tensorrt"]

FORMAT, VERSION = "lipdeploy-build", 1
MAX_RECORD_BYTES = 1 << 16
MAX_BYTES = 8 << 30

SUFFIXES: dict[str, Kind] = {".xml": "openvino", ".engine": "tensorrt", ".plan": "tensorrt"}
"""What is run, by the suffix of the file that a user names."""

ENGINE_NAMES: dict[Kind, str] = {"openvino": "openvino", "tensorrt": "trt"}
"""Of `lipdeploy export --engine`."""


@dataclass(frozen=True)
class BuildRecord:
    """What a family of files was built from.

    Attributes:
        kind: the library.
        files: SHA-256 of its own files, by suffix.
        onnx_sha256: that of the ONNX engine.
        versions: of what built it.
        settings: what it was built with and for.
    """

    kind: Kind
    files: dict[str, str]
    onnx_sha256: str
    versions: dict[str, str]
    settings: dict[str, Any]

    def to_json(self) -> str:
        """One JSON object, with format and version."""
        return json.dumps({"format": FORMAT, "format_version": VERSION, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "BuildRecord":
        """Undo `to_json`; raises ModelError if it is no record, or one of another version."""
        try:
            values = json.loads(text)
            if (values.pop("format"), values.pop("format_version")) != (FORMAT, VERSION):
                raise ValueError("another format or version")
            record = cls(**values)
            texts = [record.kind, record.onnx_sha256, *record.files.values()]
            texts += [*record.versions.values()]
            if record.kind not in SUFFIXES.values() or not isinstance(record.settings, dict):
                raise ValueError(f"{record.kind!r}")
            if not all(isinstance(value, str) for value in texts):
                raise ValueError("a hash or version is no text")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError("no record of a build by lipdeploy, or a damaged one") from error
        return record


@dataclass(frozen=True, eq=False)
class Built:
    """A family of files whose hashes are those of its record.

    Attributes:
        record: what they were built from.
        files: their content, by suffix.
        rebuild: the command that makes them again.
        onnx: the ONNX engine beside them.
    """

    record: BuildRecord
    files: dict[str, bytes]
    rebuild: str
    onnx: Path


def onnx_beside(path: Path) -> Path:
    """The ONNX engine of a family."""
    return path.with_name(f"{path.name}.onnx")


def record_beside(path: Path) -> Path:
    """The record of a family."""
    return path.with_name(f"{path.name}.json")


def rebuild_command(path: Path, kind: Kind) -> str:
    """What builds a family again from its ONNX engine."""
    words = ["lipdeploy", "export", str(onnx_beside(path)), "--engine", ENGINE_NAMES[kind]]
    return shlex.join([*words, "--output", str(path)])


def check_whole(path: Path) -> None:
    """Raise ModelError for a part of a family that is not the file to name, saying which is."""
    inner = path.with_suffix("")
    if path.suffix == ".json" and inner.suffix in SUFFIXES:
        raise ModelError(f"{path}: the record of an engine's build; give {inner}")
    model = path.with_suffix(".xml")
    if path.suffix == ".bin" and model.is_file():
        raise ModelError(f"{path}: the weights of an OpenVINO engine; give the .xml, {model}")


def read_built(path: Path) -> Built:
    """The files of a family, after comparing their hashes with the record's.

    Raises:
        ModelError: if one is missing, damaged, or another one than was recorded.
    """
    kind = SUFFIXES[path.suffix]
    rebuild = rebuild_command(path, kind)
    record = _read_record(path, kind)
    try:
        files = {
            suffix: _limited(path.with_suffix(suffix), MAX_BYTES) for suffix in sorted(record.files)
        }
    except FileNotFoundError as error:
        raise ModelError(f"{error.filename}: no such file; {_mend(path, kind)}") from error
    except OSError as error:
        raise ModelError(
            f"{error.filename}: cannot be read ({error.strerror}); type '{rebuild}'"
        ) from error
    for suffix, data in files.items():
        if hashlib.sha256(data).hexdigest() != record.files[suffix]:
            raise ModelError(
                f"{path.with_suffix(suffix)}: another file than was built; {_mend(path, kind)}"
            )
    return Built(record, files, rebuild, onnx_beside(path))


def _read_record(path: Path, kind: Kind) -> BuildRecord:
    """The record of a family; raises ModelError if it is missing, or one of other files."""
    record_path = record_beside(path)
    if not path.is_file() and not record_path.is_file() and not onnx_beside(path).is_file():
        found = "is a directory" if path.is_dir() else "no such file"
        raise ModelError(f"{path}: {found}; expected an engine written by 'lipdeploy export'")
    if not record_path.is_file():
        raise ModelError(
            f"{record_path}: no such file, and {path.name} is used only with the files that "
            f"'lipdeploy export' wrote beside it; {_mend(path, kind)}"
        )
    try:
        record = BuildRecord.from_json(_limited(record_path, MAX_RECORD_BYTES).decode())
    except OSError as error:
        raise ModelError(
            f"{record_path}: cannot be read ({error.strerror}); {_mend(path, kind)}"
        ) from error
    except (UnicodeDecodeError, ModelError) as error:
        raise ModelError(
            f"{record_path}: no record of a build by lipdeploy, or a damaged one; "
            f"{_mend(path, kind)}"
        ) from error
    expected = {".xml", ".bin"} if kind == "openvino" else {path.suffix}
    if record.kind != kind or set(record.files) != expected:
        raise ModelError(f"{record_path}: the record of another engine; {_mend(path, kind)}")
    return record


def _mend(path: Path, kind: Kind) -> str:
    """What to type for a family whose ONNX engine is there, or not."""
    if onnx_beside(path).is_file():
        return f"type '{rebuild_command(path, kind)}'"
    return export_again(path, kind)


def export_again(path: Path, kind: Kind) -> str:
    """What to type for a family that has lost its ONNX engine, too."""
    words = ["lipdeploy", "export", "MODEL.pt", "--engine", ENGINE_NAMES[kind]]
    return f"type '{shlex.join([*words, '--output', str(path)])}' with the model.pt it came from"


def _limited(path: Path, limit: int) -> bytes:
    if path.stat().st_size > limit:
        raise ModelError(f"{path}: larger than {limit} bytes, which none that export writes is")
    return path.read_bytes()
