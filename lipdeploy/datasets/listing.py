"""A CSV list of images with their classes."""

import csv
from collections.abc import Sequence
from pathlib import Path

from lipdeploy.choices import suggestion
from lipdeploy.datasets.labelled import LabelledSources, labelled_by_name
from lipdeploy.errors import DatasetError

COLUMNS = ("path", "label")
OTHER_DELIMITERS = frozenset(";\t|")


def scan_list(path: Path) -> LabelledSources[Path]:
    """Read a CSV list of images: columns `path`, relative to the list's folder, and `label`.

    Labels are names of classes; these are in the order of their names, images in that of the lines.
    Other columns do not count.

    Raises:
        DatasetError: if it is no such list, has no line, or names a file that is not there.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            _check_columns(path, reader.fieldnames)
            rows = [_list_row(path, reader.line_num, row) for row in reader]
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); give a CSV file with the columns "
            f"{','.join(COLUMNS)}"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: not a CSV file in UTF-8 ({error}); save it as one") from error
    if not rows:
        raise DatasetError(f"{path}: a list without images; add a line for each")
    files = [file for file, _ in rows]
    return labelled_by_name(str(path), files, [label for _, label in rows], "change the label")


def _check_columns(path: Path, found: Sequence[str]) -> None:
    for name in COLUMNS:
        if name not in found:
            there = f"has {', '.join(map(repr, found))}" if found else "is empty"
            hint = suggestion(name, found)
            if len(found) == 1 and set(found[0]) & OTHER_DELIMITERS:
                hint = "; separate them by commas"
            raise DatasetError(
                f"{path}: no column {name!r} in its first line, which {there} and must name the "
                f"columns {','.join(COLUMNS)}{hint}"
            )


def _list_row(path: Path, line: int, row: dict[str, str | None]) -> tuple[Path, str]:
    """File and label of a line; a file that is not there is a slip in the list."""
    file, label = ((row[name] or "").strip() for name in COLUMNS)
    if not file or not label:
        missing = COLUMNS[0] if not file else COLUMNS[1]
        raise DatasetError(f"{path}: line {line} has no {missing}; fill it in, or remove the line")
    if not (path.parent / file).exists():
        raise DatasetError(
            f"{path}: line {line} names {file}, and there is no file {path.parent / file}; write "
            "paths relative to the folder of the list"
        )
    return path.parent / file, label
