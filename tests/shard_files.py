"""Parquet and tar files that several tests write."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from lipdeploy.datasets import scan_test_set
from lipdeploy.errors import DatasetError

STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def tar_of(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar file with these names and contents."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def samples_of(
    images: Sequence[bytes], labels: Sequence[object], ending: str = "cls"
) -> list[tuple[str, bytes]]:
    """The files of WebDataset samples."""
    files: list[tuple[str, bytes]] = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        files += [(f"{number:04d}.jpg", image), (f"{number:04d}.{ending}", f"{label}".encode())]
    return files


def table_of(
    images: Sequence[bytes | None],
    labels: Sequence[object],
    classes: Sequence[str] | None = None,
    is_struct: bool = False,
) -> pyarrow.Table:
    """Columns image and label, as Hugging Face writes them where they are a struct and numbers."""
    column: Any = pyarrow.array(images, pyarrow.binary())
    if is_struct:
        column = pyarrow.array([{"bytes": image, "path": None} for image in images], STRUCT)
    table = pyarrow.table({"image": column, "label": pyarrow.array(labels)})
    return table.replace_schema_metadata(features(classes)) if classes else table


def features(classes: object) -> dict[str, str]:
    """What Hugging Face's datasets keep beside the columns of a Parquet file."""
    label = {"names": classes, "_type": "ClassLabel"}
    described = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    return {"huggingface": json.dumps(described)}


def write_parquet(path: Path, table: pyarrow.Table, rows: int = 7, **options: Any) -> Path:
    """Write a Parquet file of row groups of so many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=rows, **options)
    return path


def assert_refused(path: Path, data: bytes, message: str) -> None:
    """A test set in a file of this name and content is refused in one line that says why."""
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=message) as refused:
        scan_test_set(str(path))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
