"""Labelled images that are not decoded yet, and the classes that they share with a model."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from lipdeploy.choices import check_class_names, suggestion
from lipdeploy.errors import DatasetError, ImageError
from lipdeploy.images import ImageSource, StoredImage, encoded

Source = TypeVar("Source", bound=ImageSource)


@dataclass(frozen=True)
class LabelledSources(Generic[Source]):
    """Images that are not decoded yet, with their labels.

    Attributes:
        name: where they come from.
        classes: names of the classes.
        sources: files, images stored in larger ones, or arrays of shape (height, width, 3), uint8.
        labels: positions in `classes`.
        may_lack_classes: whether a model may have classes without an image here: so where the
            class of each image is named, as in a list; not where a folder is missing.
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
    try:
        if isinstance(source, bytes | StoredImage):
            return hashlib.sha256(encoded(source)).digest()
        with Path(str(source)).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except (OSError, ImageError):
        return b"unreadable"


def labelled_by_name(
    name: str, sources: Sequence[Source], labels: Sequence[str], advice: str
) -> LabelledSources[Source]:
    """Images with the name of the class of each; classes are put in the order of their names.

    Args:
        name: where they come from.
        sources: the images.
        labels: names of their classes, as many.
        advice: what to do about a name that cannot be one.

    Raises:
        DatasetError: if a class has no such name; see `check_class_names`.
    """
    classes = sorted(set(labels))
    try:
        check_class_names(classes)
    except ValueError as error:
        raise DatasetError(f"{name}: {error}; {advice}") from error
    positions = {label: position for position, label in enumerate(classes)}
    numbers = [positions[label] for label in labels]
    return LabelledSources(name, tuple(classes), sources, numbers, may_lack_classes=True)


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
        hint = _meant_class(name, expected, found, owner)
        raise DatasetError(f"{where}: {owner} has no class {name!r}{hint}")
    if missing := sorted(set(expected if required is None else required) - found):
        raise DatasetError(
            f"{where}: no images of {_list(missing)}, which {owner} has; test and training need "
            "the same classes: add a folder of images for each, or train without them"
        )


def _meant_class(name: str, expected: Sequence[str], found: set[str], owner: str) -> str:
    """What an unknown class may mean: one that is spelled alike, or that has this number."""
    if near := suggestion(name, sorted(set(expected) - found)):
        return near
    if name.isdecimal() and int(name) < len(expected):
        number = int(name)
        return (
            f"; classes go by name: number {number} in the order of {owner} is {expected[number]}, "
            "if that order was meant"
        )
    return f"; it knows {_list(sorted(expected))}"


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
