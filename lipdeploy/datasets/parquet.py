"""Parquet files with a column of encoded images and one of classes, as Hugging Face writes them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from lipdeploy.choices import LONGEST_NAME
from lipdeploy.datasets.labelled import LabelledSources, labelled_by_name
from lipdeploy.datasets.row_group import (
    OpenGroups,
    ParquetImage,
    Table,
    open_parquet,
)
from lipdeploy.errors import DatasetError, readable

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "class_name", "class")
"""Names that are looked for, the first one first."""

BINARY = ("binary", "large_binary", "binary_view")
TEXT = ("string", "large_string", "string_view")
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))

ROWS_AT_ONCE = 4096
"""Labels that are read at a time."""

HARMLESS_BYTES, MAX_GROWTH = 1 << 28, 100
"""A column that the file says to grow more, to more, is refused: images hardly get smaller by
compression. What pages grow to in truth nobody knows before pyarrow has decompressed them."""

LONGEST_LABEL = 4 * LONGEST_NAME
"""Bytes of a label: no character has more than four in UTF-8."""


def scan_parquet(name: str, files: Sequence[Path]) -> LabelledSources[ParquetImage]:
    """Find the images of Parquet files; labels are read now, images when they are needed.

    The images are in a column `image` or `img`: the bytes of an image file, alone or as `bytes` of
    a struct. Classes are in a column `label` (or another of `LABEL_COLUMNS`): names, or numbers
    where the file has the names for them (ClassLabel of Hugging Face).

    Args:
        name: of the dataset.
        files: in order.

    Raises:
        DatasetError: if pyarrow is missing, or a file is damaged or has not these columns.
    """
    _check_pyarrow(name)
    groups = OpenGroups()
    images: list[ParquetImage] = []
    labels: list[str] = []
    for path in files:
        with readable(path, "Parquet file", "write it again"):
            layout = _layout(path)
            found = _labels(path, layout)
        table = Table(path, layout.metadata, layout.image, layout.starts, groups)
        images += [ParquetImage(table, row) for row in range(len(found))]
        labels += found
    if not images:
        raise DatasetError(f"{name}: no rows; give Parquet files with images")
    return labelled_by_name(name, images, labels, "change the label")


def _check_pyarrow(name: str) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DatasetError(
            f"{name}: reading Parquet files needs pyarrow; pip install 'lipdeploy[parquet]'"
        ) from error


@dataclass(frozen=True)
class _Layout:
    """What is where in a file.

    Attributes:
        metadata: of the file.
        image: path of the column of encoded images.
        label: name of the column of classes.
        classes: names of the classes that the file has for numbers; None for none.
        starts: as in `Table`.
    """

    metadata: "parquet.FileMetaData"
    image: str
    label: str
    classes: tuple[str, ...] | None
    starts: tuple[int, ...]


def _layout(path: Path) -> _Layout:
    with open_parquet(path) as file:
        image = _image_column(path, file.schema_arrow)
        label, classes = _label_column(path, file.schema_arrow)
        metadata = file.metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    _check_growth(path, groups, (image, label))
    starts = tuple(accumulate((group.num_rows for group in groups), initial=0))
    return _Layout(metadata, image, label, classes, starts)


def _check_growth(
    path: Path, groups: "Sequence[parquet.RowGroupMetaData]", names: Sequence[str]
) -> None:
    """Raise DatasetError where a file says that few bytes of these columns become very many."""
    for number, group in enumerate(groups):
        columns = [group.column(index) for index in range(group.num_columns)]
        for stored in (column for column in columns if column.path_in_schema in names):
            before, after = stored.total_compressed_size, stored.total_uncompressed_size
            if after > max(HARMLESS_BYTES, MAX_GROWTH * before):
                raise DatasetError(
                    f"{path}: row group {number} of {stored.path_in_schema} says that it grows "
                    f"from {before:,} to {after:,} bytes when it is decompressed; write it "
                    "without compression"
                )


def _image_column(path: Path, schema: "pyarrow.Schema") -> str:
    """Path of the column of encoded images: its name, or that of a field in it."""
    name = _present(path, schema, IMAGE_COLUMNS, "images")[0]
    kind = schema.field(name).type
    if str(kind) in BINARY:
        return name
    if str(kind).startswith("struct<"):
        fields = {kind.field(i).name: str(kind.field(i).type) for i in range(kind.num_fields)}
        if fields.get("bytes") in BINARY:
            return f"{name}.bytes"
    raise DatasetError(
        f"{path}: column {name!r} is {_shown(kind)}, expected encoded images: binary, or a struct "
        "with bytes; write the bytes of image files"
    )


def _label_column(path: Path, schema: "pyarrow.Schema") -> tuple[str, tuple[str, ...] | None]:
    """The column of classes, and the names of its numbers."""
    present = _present(path, schema, LABEL_COLUMNS, "classes")
    for name in present:
        kind = schema.field(name).type
        kind = getattr(kind, "value_type", kind)
        classes = _class_names(schema, name)
        if str(kind) in TEXT or (classes and str(kind) in INTEGERS):
            return name, classes
    kind = schema.field(present[0]).type
    raise DatasetError(
        f"{path}: column {present[0]!r} is {_shown(kind)}, and nothing in the file names the "
        "classes; write their names as text, or ClassLabel of Hugging Face's datasets"
    )


def _present(path: Path, schema: "pyarrow.Schema", wanted: Sequence[str], what: str) -> list[str]:
    """Which columns there are of those wanted."""
    found = [name for name in wanted if schema.names.count(name) == 1]
    if not found:
        raise DatasetError(
            f"{path}: no column for {what}, expected {' or '.join(wanted)}; it has "
            f"{_shown(schema.names)}; rename one"
        )
    return found


def _shown(value: object) -> str:
    return f"{' '.join(str(value).split())!s:.200}"


def _class_names(schema: "pyarrow.Schema", column: str) -> tuple[str, ...] | None:
    """The names that Hugging Face's datasets keep beside the columns, for the numbers in one."""
    try:
        kept = json.loads((schema.metadata or {})[b"huggingface"])
        names = kept["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list else None


def _labels(path: Path, layout: _Layout) -> list[str]:
    """The name of the class of each row."""
    found: list[str] = []
    rows = layout.starts[-1]
    with open_parquet(path, [layout.label]) as file:
        batches = file.iter_batches(
            batch_size=ROWS_AT_ONCE, columns=[layout.label], use_threads=False
        )
        for batch in batches:
            # Few bytes can claim to be very many rows, but not rows with an image each.
            if len(found) > path.stat().st_size:
                raise DatasetError(f"{path}: has more rows than bytes; write it again")
            found += _batch_labels(path, batch.column(0), layout.classes, len(found))
    if len(found) != rows:
        raise DatasetError(f"{path}: {len(found)} labels for {rows} rows; write it again")
    return found


def _batch_labels(
    path: Path, column: "pyarrow.Array", classes: Sequence[str] | None, start: int
) -> Iterator[str]:
    """The name of the class of each row, the first of which is number `start`."""
    if not hasattr(column, "dictionary"):
        column = column.dictionary_encode()
    _check_lengths(path, column.dictionary)
    positions = column.indices.to_pylist()
    # Each name once, however often and however long it is.
    values = {position: _value(column, position) for position in set(positions)}
    for row, position in enumerate(positions, start):
        value = values[position]
        if isinstance(value, str):
            yield value
        elif value is not None and classes and 0 <= value < len(classes):
            yield classes[value]
        else:
            what = "no label" if value is None else f"label {value}, which the file does not name"
            raise DatasetError(f"{path}: row {row} has {what}; give images whose class is known")


def _check_lengths(path: Path, labels: "pyarrow.Array") -> None:
    """Raise DatasetError for a label that is too long, before Python makes a text of it."""
    import pyarrow.compute

    if str(labels.type) not in TEXT:
        return
    longest = pyarrow.compute.max(pyarrow.compute.binary_length(labels)).as_py() or 0
    if longest > LONGEST_LABEL:
        raise DatasetError(
            f"{path}: a label of {longest:,} bytes, limit {LONGEST_LABEL:,}; write names of classes"
        )


def _value(column: "pyarrow.Array", position: int | None) -> str | int | None:
    value: str | int | None = None if position is None else column.dictionary[position].as_py()
    return value
