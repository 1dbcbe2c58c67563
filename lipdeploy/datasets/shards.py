"""Which files are meant: one, those of a folder, or of a pattern as test-{000000..000009}.tar."""

import re
from collections.abc import Sequence
from itertools import product
from math import prod
from pathlib import Path

from lipdeploy.datasets.folder import class_folders
from lipdeploy.errors import DatasetError

PARQUET, TAR = ".parquet", ".tar"
COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

MAX_SHARDS = 100_000
"""More files than any dataset has: a pattern that asks for more is a slip."""

RANGE = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")

PART = re.compile(r"(train|test|val)(?:id|idation|ing)?(?![a-z])", re.IGNORECASE)
"""Begins the name of a file, as in test-00000-of-00004.parquet."""


def find_shards(dataset: str) -> list[Path]:
    """The files that `dataset` means, in order; none where it is something else.

    In a folder these are its files of one kind, or those of the folder `test` in it; where their
    names begin with that of a part (train, test, validation), only those of the test part; those
    of validation where the folder has nothing else, never those of training.

    Raises:
        DatasetError: if a file does not exist, or the parts cannot be told apart.
    """
    path = Path(dataset)
    if path.is_dir():
        return _in_folder(path)
    if path.suffix.lower() not in (PARQUET, TAR):
        return []
    files = [path] if path.exists() else expanded(dataset)
    for file in files:
        if not file.is_file():
            raise DatasetError(
                f"{file}: no such file; give a file, a folder of them, or a quoted pattern, as "
                f"'test-{{000000..000009}}{path.suffix}'"
            )
    return files


def expanded(pattern: str) -> list[Path]:
    """The files of a pattern with ranges of numbers, the last one counting fastest.

    Numbers are padded with zeros where one of the two that are given is, as in a shell.

    Raises:
        DatasetError: if they are too many.
    """
    # Text and the two ends of each range take turns.
    parts = RANGE.split(pattern)
    texts, ends = parts[::3], list(zip(parts[1::3], parts[2::3], strict=True))
    count = prod(abs(int(last) - int(first)) + 1 for first, last in ends)
    if count > MAX_SHARDS:
        raise DatasetError(f"{pattern}: {count:,} files, limit {MAX_SHARDS:,}; give a folder")
    found = []
    for numbers in product(*(_numbers(first, last) for first, last in ends)):
        pairs = zip(texts, (*numbers, ""), strict=True)
        found.append(Path("".join(text + number for text, number in pairs)))
    return found


def _numbers(first: str, last: str) -> list[str]:
    is_padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    step = 1 if int(first) <= int(last) else -1
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]


def _in_folder(folder: Path) -> list[Path]:
    part = folder / "test"
    # With folders of images, other files are something else, such as a table of an evaluation.
    if part.is_dir() and class_folders(part):
        return []
    for base in (part, folder):
        files = sorted(base.iterdir()) if base.is_dir() else []
        kinds = [
            [f for f in files if f.suffix.lower() == s and f.is_file()] for s in (PARQUET, TAR)
        ]
        if all(kinds):
            raise DatasetError(f"{base}: holds .parquet and .tar files; name those to evaluate on")
        if found := kinds[0] or kinds[1]:
            return _test_part(base, found)
    return []


def _test_part(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Those of the test part by their names; all where no name tells a part, or all validation."""
    parts: dict[str, list[Path]] = {}
    for file in files:
        match = PART.match(file.name)
        parts.setdefault(match[1].lower() if match else "", []).append(file)
    if "test" in parts:
        return parts["test"]
    if len(parts) == 1 and "train" not in parts:
        return list(files)
    names = ", ".join(group[0].name for group in parts.values())
    what = "several parts" if len(parts) > 1 else "the training part alone"
    raise DatasetError(
        f"{folder}: holds files of {what} ({names}), none of test; name those to evaluate on, as "
        f"{files[0]}"
    )


def check_not_compressed(path: Path) -> None:
    """Raise DatasetError for a compressed tar file: an image in it cannot be found again."""
    if path.name.lower().endswith(COMPRESSED):
        raise DatasetError(f"{path}: a compressed tar file; decompress it and give the .tar file")
