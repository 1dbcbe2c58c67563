"""A line an image, as CSV and as Parquet."""

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipdeploy.breakdown import equal_change_lower
from lipdeploy.errors import OutputError
from lipdeploy.files import writing

if TYPE_CHECKING:
    from lipdeploy.evaluation import Outcome

COLUMNS = {
    "path": str,
    "class": str,
    "predicted": str,
    "correct": int,
    "radius": float,
    "radius_255": float,
    "radius_file": float,
    "integer_budget": int,
    "guarantee": str,
    "radius_255_network": float,
    "radius_255_program": float,
    "assumptions": str,
    "error": str,
    "equal_change_255": float,
    "confidence": float,
    "model": str,
}
"""Names and types of the columns, in order."""

CERTIFICATE = ("radius", "radius_255", "radius_file", "integer_budget", "guarantee")

ROWS_AT_ONCE = 4096
"""Lines of a row group of a Parquet file."""

Row = dict[str, Any]
Writer = Callable[[Row], None]
ImageWriter = Callable[["Outcome", str, int], None]
"""Takes the arguments of `image_row`."""


def image_row(outcome: "Outcome", model: str, numbers: int) -> Row:
    """One line of the table; radii as in `predict`, also where the answer is wrong.

    Args:
        outcome: of the image.
        model: name of the artifact.
        numbers: of the network's input, 3 n n.
    """
    result = outcome.result
    row = dict.fromkeys(COLUMNS) | {"path": result.path, "class": outcome.true_class}
    row |= {"correct": int(outcome.is_correct), "model": model}
    certificate = getattr(result, "certificate", None)
    if certificate is not None:
        row |= {name: getattr(certificate, name) for name in CERTIFICATE}
        compared = certificate.radii_255
        row |= {f"radius_255_{name}": compared.get(name) for name in ("network", "program")}
        row["assumptions"] = "; ".join(certificate.assumptions)
        row["equal_change_255"] = equal_change_lower(certificate.radius_255, numbers)
        row["confidence"] = outcome.confidence
    return row | {
        "predicted": getattr(result, "label", None),
        "error": getattr(result, "error", None),
    }


@contextmanager
def image_tables(csv_path: Path | None, parquet_path: Path | None) -> Iterator[ImageWriter]:
    """Write a line an image into each file while it runs; nothing where both are None.

    Older files of these names stay until the new ones are whole.

    Raises:
        OutputError: if a file cannot be written.
    """
    with ExitStack() as stack:
        writers: list[Writer] = []
        if csv_path is not None:
            writers.append(stack.enter_context(_csv_table(csv_path)))
        if parquet_path is not None:
            writers.append(stack.enter_context(_parquet_table(parquet_path)))

        def write(outcome: "Outcome", model: str, numbers: int) -> None:
            row = image_row(outcome, model, numbers) if writers else {}
            for writer in writers:
                writer(row)

        yield write


@contextmanager
def _csv_table(path: Path) -> Iterator[Writer]:
    with _replaced(path) as target:
        with writing(path):
            stream = target.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        try:
            table = csv.DictWriter(stream, COLUMNS)
            with writing(path):
                table.writeheader()

            def write(row: Row) -> None:
                with writing(path):
                    table.writerow(row)

            yield write
            with writing(path):
                stream.close()
        finally:
            with suppress(OSError):
                stream.close()


def check_pyarrow() -> None:
    """Raise OutputError where pyarrow is missing, before an evaluation that wants its file."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise OutputError(
            "--parquet needs pyarrow; pip install 'lipdeploy[parquet]', or use --csv"
        ) from error


@contextmanager
def _parquet_table(path: Path) -> Iterator[Writer]:
    import pyarrow
    from pyarrow import parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    with _replaced(path) as target:
        with writing(path):
            table = parquet.ParquetWriter(str(target), schema)
        rows: list[Row] = []

        def flush() -> None:
            with writing(path):
                table.write_table(pyarrow.Table.from_pylist(rows, schema))
            rows.clear()

        def write(row: Row) -> None:
            rows.append({name: _text(value) for name, value in row.items()})
            if len(rows) == ROWS_AT_ONCE:
                flush()

        try:
            yield write
            flush()
            with writing(path):
                table.close()
        finally:
            with suppress(OSError):
                table.close()


def _text(value: object) -> object:
    """File names that are no text, as in the CSV file."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return value


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A name to write under; what is there at the end takes the place of the file."""
    if path.exists() and not path.is_file():
        yield path  # a device, such as /dev/stdout, has no name that could be taken
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with writing(path):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
