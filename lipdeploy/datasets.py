"""Labelled images, without torch: image folders, and the classes that they share with a model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from lipdeploy.choices import check_class_names, suggestion
from lipdeploy.errors import DatasetError
from lipdeploy.images import SUFFIXES, ImageSource

CIFAR_NAMES = ("cifar10", "cifar100")

Source = TypeVar("Source", bound=ImageSource)


@dataclass(frozen=True)
class LabelledSources(Generic[Source]):
    """Images that are not decoded yet, with their labels.

    Attributes:
        name: where they come from.
        classes: names of the classes.
        sources: files, or arrays of shape (height, width, 3), uint8.
        labels: positions in `classes`.
    """

    name: str
    classes: tuple[str, ...]
    sources: Sequence[Source]
    labels: Sequence[int]

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

    def in_order_of(self, classes: tuple[str, ...]) -> "LabelledSources[Source]":
        """The same images, labels counted in `classes`, those of a model.

        Raises:
            DatasetError: if the two have not the same classes.
        """
        check_same_classes(self.name, self.classes, classes, "the model")
        positions = [classes.index(name) for name in self.classes]
        return replace(self, classes=classes, labels=[positions[label] for label in self.labels])


def check_same_classes(
    where: str, found: Iterable[str], expected: Iterable[str], owner: str
) -> None:
    """Raise DatasetError unless the classes in `where` are those of `owner`."""
    found, expected = set(found), set(expected)
    for name in sorted(found - expected):
        hint = suggestion(name, expected - found) or f"; it knows {_list(sorted(expected))}"
        raise DatasetError(f"{where}: {owner} has no class {name!r}{hint}")
    if missing := sorted(expected - found):
        raise DatasetError(
            f"{where}: no images of {_list(missing)}, which {owner} has; test and training need "
            "the same classes: add a folder of images for each, or train without them"
        )


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
