"""Reading and writing any engine."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipdeploy.artifact import Engine
from lipdeploy.built import (
    SUFFIXES,
    BuildRecord,
    Built,
    check_whole,
    export_again,
    onnx_beside,
    read_built,
    rebuild_command,
    record_beside,
)
from lipdeploy.errors import ModelError
from lipdeploy.exporters.onnx_file import read_onnx
from lipdeploy.files import write_atomically


def read_engine(path: Path) -> Engine:
    """Read an engine, whatever runs it; nothing of it is executed.

    Raises:
        ModelError: if it is missing, damaged, foreign, or its files do not belong together.
    """
    check_whole(path)
    if path.suffix not in SUFFIXES:
        return read_onnx(path)
    built = read_built(path)
    try:
        engine = read_onnx(onnx_beside(path))
    except ModelError as error:
        again = export_again(path, SUFFIXES[path.suffix])
        reason = str(error).partition("; ")[0]
        raise ModelError(f"{reason}; {again}") from error
    if engine.sha256 != built.record.onnx_sha256:
        raise ModelError(
            f"{engine.name}: not the ONNX engine that {path.name} was built from; type "
            f"'{built.rebuild}'"
        )
    return _named(engine, path, built)


def with_built(
    engine: Engine,
    path: Path,
    files: Mapping[str, bytes],
    versions: Mapping[str, str],
    settings: Mapping[str, Any],
) -> Engine:
    """An engine with the files that another library made of its graph.

    Args:
        engine: the ONNX engine.
        path: what the first of these files will be called.
        files: their content, by suffix.
        versions: of what made them.
        settings: what they were made with and for.
    """
    kind = SUFFIXES[path.suffix]
    hashes = {suffix: hashlib.sha256(data).hexdigest() for suffix, data in files.items()}
    onnx_sha256 = hashlib.sha256(engine.data).hexdigest()
    record = BuildRecord(kind, hashes, onnx_sha256, dict(versions), dict(settings))
    rebuild = rebuild_command(path, kind)
    return _named(engine, path, Built(record, dict(files), rebuild, onnx_beside(path)))


def _named(engine: Engine, path: Path, built: Built) -> Engine:
    size = sum(len(data) for data in built.files.values())
    sha256 = built.record.files[path.suffix]
    return replace(engine, name=str(path), size=size, sha256=sha256, built=built)


def write_engine(engine: Engine, path: Path) -> dict[Path, int]:
    """Write an engine and what belongs beside it; gives the files and their bytes.

    Each file is whole at any moment; a family whose writing was cut off is refused when it is read.

    Raises:
        OutputError: if a file cannot be written.
    """
    if engine.built is None:
        contents = {path: engine.data}
    else:
        contents = {path.with_suffix(end): data for end, data in engine.built.files.items()}
        contents[onnx_beside(path)] = engine.data
        contents[record_beside(path)] = engine.built.record.to_json().encode()
    for name, data in contents.items():
        write_atomically(data, name)
    return {name: len(data) for name, data in contents.items()}
