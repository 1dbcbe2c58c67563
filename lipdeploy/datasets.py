"""Labelled images, without torch: folders, lists, and the classes that they share with a model."""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from lipdeploy.choices import check_class_names, suggestion
from lipdeploy.errors import DatasetError
from lipdeploy.images import SUFFIXES, ImageSource

CIFAR_NAMES = ("cifar10", "cifar100")
LIST_SUFFIX = ".csv"
LIST_COLUMNS = ("path", "label")

Source = TypeVar("Source", bound=ImageSource)


@dataclass(frozen=True)
class LabelledSources(Generic[Source]):
    """Images that are not decoded yet, with their labels.

    Attributes:
        name: where they come from.
        classes: names of the classes.
        sources: files, or arrays of shape (height, width, 3), uint8.
        labels: positions in `classes`.
        may_lack_classes: whether a model may have classes without an image here: so in a list,
            which names the class of each image; not where a folder is missing.
    """

    name: str
    classes: tuple[str, ...]
    sources: Sequence[Source]
    labels: Sequence[int]
    may_lack_classes: bool = False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def spread(self, limit: int) -> "LabelledSources[Source]":
        """`limit` of the images at equal distances; in a folder every class keeps its share."""
        if limit >= len(self):
            return self
        indices = [index * len(self) // limit for index in range(limit)]
        return replace(
            self,
            sources=[self.sources[index] for index in indices],
            labels=[self.labels[index] for index in indices],
        )

    def since(self, start: int) -> "LabelledSources[Source]":
        """The images from position `start` on."""
        if not start:
            return self
        return replace(self, sources=self.sources[start:], labels=self.labels[start:])

    def sha256(self) -> str:
        """Hash of the contents of all images in order, each with its class; reads all files.

        Names and places of files do not count; one that cannot be read counts as such.
        """
        state = hashlib.sha256()
        for label, source in zip(self.labels, self.sources, strict=True):
            state.update(f"{self.classes[label]}\n".encode() + _content_hash(source))
        return state.hexdigest()

    def in_order_of(self, classes: tuple[str, ...]) -> "LabelledSources[Source]":
        """The same images, labels counted in `classes`, those of a model.

        Raises:
            DatasetError: if the two have not the same classes.
        """
        required = () if self.may_lack_classes else classes
        check_same_classes(self.name, self.classes, classes, "the model", required)
        positions = [classes.index(name) for name in self.classes]
        return replace(self, classes=classes, labels=[positions[label] for label in self.labels])


def _content_hash(source: ImageSource) -> bytes:
    if isinstance(source, np.ndarray):
        return hashlib.sha256(f"{source.shape}\n".encode() + source.tobytes()).digest()
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    try:
        with Path(str(source)).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError:
        return b"unreadable"


def check_same_classes(
    where: str,
    found: Iterable[str],
    expected: Sequence[str],
    owner: str,
    required: Iterable[str] | None = None,
) -> None:
    """Raise DatasetError unless the classes in `where` are those of `owner`.

    Args:
        where: what the message begins with.
        found: the classes there.
        expected: the classes of `owner`, in its order.
        owner: a model, or a dataset.
        required: those of which images must be there; None for all that are expected.
    """
    found = set(found)
    for name in sorted(found - set(expected)):
        hint = _meant_class(name, expected, found)
        raise DatasetError(f"{where}: {owner} has no class {name!r}{hint}")
    if missing := sorted(set(expected if required is None else required) - found):
        raise DatasetError(
            f"{where}: no images of {_list(missing)}, which {owner} has; test and training need "
            "the same classes: add a folder of images for each, or train without them"
        )


def _meant_class(name: str, expected: Sequence[str], found: set[str]) -> str:
    """What an unknown class may mean: one that is spelled alike, or that has this number."""
    if near := suggestion(name, sorted(set(expected) - found)):
        return near
    if name.isdecimal() and int(name) < len(expected):
        return f"; classes go by name, and number {int(name)} is {expected[int(name)]}"
    return f"; it knows {_list(sorted(expected))}"


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"


def unknown_dataset(name: str) -> DatasetError:
    """The error for what is neither a folder nor a dataset that has a name."""
    hint = suggestion(name, CIFAR_NAMES)
    return DatasetError(f"{name}: neither a folder nor one of {', '.join(CIFAR_NAMES)}{hint}")


def scan_folder(root: Path, part: str) -> LabelledSources[Path]:
    """List the images of `root`/`part`/<class>/*, classes and files in the order of their names.

    Raises:
        DatasetError: if the layout is another one, or a class has no image.
    """
    base = root / part
    if not base.is_dir():
        raise DatasetError(
            f"{root}: expected folders {part}/<class>/* with images, found no {base}"
        )
    names = _class_folders(base)
    if len(names) < 2:
        found = f"only the class folder {names[0]!r}" if names else "no class folders"
        raise DatasetError(
            f"{base}: found {found}, expected at least 2; make one folder of images for each class"
        )
    try:
        check_class_names(names)
    except ValueError as error:
        raise DatasetError(f"{base}: {error}; rename the folder") from error
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        pictures = sorted(p for p in (base / name).iterdir() if p.suffix.lower() in SUFFIXES)
        if not pictures:
            raise DatasetError(f"{base / name}: a class without images; add some or remove it")
        files += pictures
        labels += [label] * len(pictures)
    return LabelledSources(str(base), tuple(names), files, labels)


def _class_folders(base: Path) -> list[str]:
    return sorted(p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))


def check_test_classes(root: Path, classes: tuple[str, ...]) -> None:
    """Where a dataset has a test part: make sure, before training, that its classes are the same.

    Raises:
        DatasetError: if they are not; no image is read.
    """
    base = root / "test"
    if base.is_dir():
        check_same_classes(str(base), _class_folders(base), classes, f"{root / 'train'}")


def scan_list(path: Path) -> LabelledSources[Path]:
    """Read a CSV list of images: columns `path`, relative to the list's folder, and `label`.

    Labels are names of classes; these are in the order of their names, images in that of the lines.
    Other columns do not count.

    Raises:
        DatasetError: if it is no such list, or has no line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            _check_columns(path, reader.fieldnames or ())
            rows = [_list_row(path, reader.line_num, row) for row in reader]
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); give a CSV file with the columns "
            f"{','.join(LIST_COLUMNS)}"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: not a CSV file in UTF-8 ({error}); save it as one") from error
    if not rows:
        raise DatasetError(f"{path}: a list without images; add a line for each")
    names = sorted({label for _, label in rows})
    try:
        check_class_names(names)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}; change the label") from error
    positions = {name: position for position, name in enumerate(names)}
    files = [path.parent / name for name, _ in rows]
    labels = [positions[label] for _, label in rows]
    return LabelledSources(str(path), tuple(names), files, labels, may_lack_classes=True)


def _check_columns(path: Path, found: Sequence[str]) -> None:
    for name in LIST_COLUMNS:
        if name not in found:
            hint = suggestion(name, found)
            raise DatasetError(
                f"{path}: no column {name!r} in its first line, which must name the columns "
                f"{','.join(LIST_COLUMNS)}{hint}"
            )


def _list_row(path: Path, line: int, row: dict[str, str | None]) -> tuple[str, str]:
    """File and label of a line."""
    file, label = ((row[name] or "").strip() for name in LIST_COLUMNS)
    if not file or not label:
        missing = LIST_COLUMNS[0] if not file else LIST_COLUMNS[1]
        raise DatasetError(f"{path}: line {line} has no {missing}; fill it in, or remove the line")
    return file, label
