"""Tar files in the layout of WebDataset: a sample is the files of one name, side by side.

    0000.jpg  0000.cls  0001.jpg  0001.cls ...

The name of a sample, its key, is what stands before the first dot (Aizman, Maltby & Breuel, 2019).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from lipdeploy.choices import check_class_names
from lipdeploy.datasets.labelled import LabelledSources, labelled_by_name
from lipdeploy.datasets.tar_file import TarImage, members
from lipdeploy.errors import DatasetError, ImageError
from lipdeploy.images import SUFFIXES

LABELS = ("cls", "txt", "json")
"""Endings of files with a class, the first one first."""

JSON_KEYS = ("class_name", "class", "label", "cls")
"""Where the class may stand in a .json file that holds an object, the first one first."""

CLASS_FILES = ("classes.txt", "classnames.txt")
"""Names of the classes by number, one a line; in a tar file or beside it."""

NOTES = {"json", "md", "txt"}
"""Endings of files that may lie among the samples by themselves."""

MAX_TEXT = 1 << 20
"""Bytes of a file with a class, or with the names of all."""

NUMBER = re.compile(r"-?[0-9]{1,9}")

Sample = dict[str, TarImage]
"""The files of a sample by their endings, in lower case."""


@dataclass
class _Found:
    """What was read so far.

    Attributes:
        images: of the samples.
        labels: what each says of its class: a name or a number.
        classes: lists of the names of the classes by number, those that differ.
    """

    images: list[TarImage] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    classes: set[tuple[str, ...]] = field(default_factory=set)


def scan_webdataset(name: str, files: Sequence[Path]) -> LabelledSources[TarImage]:
    """Find the images of tar files; classes are read now, images when they are needed.

    Args:
        name: of the dataset.
        files: in order.

    Raises:
        DatasetError: if a file is damaged or laid out in another way, or a class has no name.
    """
    found = _Found()
    for path in files:
        _scan(path, found)
    if not found.images:
        raise DatasetError(
            f"{name}: no samples, expected files as 0000.jpg beside 0000.cls in the tar file"
        )
    if len(found.classes) > 1:
        raise DatasetError(f"{name}: several {CLASS_FILES[0]} that differ; keep one")
    classes = next(iter(found.classes), None) or _classes_beside(files[0])
    pairs = zip(found.labels, found.images, strict=True)
    labels = [_class_name(label, image, classes) for label, image in pairs]
    return labelled_by_name(name, found.images, labels, "change it")


def _classes_beside(path: Path) -> tuple[str, ...] | None:
    """The names in a file beside a tar file, or above its folder where that is called test."""
    folders = [path.parent, *([path.parent.parent] if path.parent.name == "test" else [])]
    for file in (folder / name for folder in folders for name in CLASS_FILES):
        if file.is_file():
            with file.open("rb") as stream:
                return _classes(_text(stream.read(MAX_TEXT + 1), str(file)), str(file))
    return None


def _scan(path: Path, found: _Found) -> None:
    """Add the samples of one tar file."""
    named = (member for member in members(path) if _key_and_ending(member)[0])
    for key, group in groupby(named, lambda member: _key_and_ending(member)[0]):
        files = list(group)
        sample = {_key_and_ending(file)[1]: file for file in files}
        if len(sample) < len(files):
            raise DatasetError(f"{path}/{key}: two files of one name; pack each once")
        if set(sample) == {"txt"} and files[0].member.rpartition("/")[2] in CLASS_FILES:
            found.classes.add(_classes(_content(files[0]), files[0].name))
        elif image := _image_of(sample, f"{path}/{key}"):
            found.images.append(image)
            found.labels.append(_label_of(sample, image))


def _key_and_ending(file: TarImage) -> tuple[str, str]:
    """What stands before the first dot of a name, and what behind it; empty for no sample."""
    folder, slash, base = file.member.rpartition("/")
    stem, _, ending = base.partition(".")
    is_note = not slash and base.startswith("__") and base.endswith("__")
    is_part = stem and ending and not is_note
    return (folder + slash + stem, ending.lower()) if is_part else ("", "")


def _image_of(sample: Sample, where: str) -> TarImage | None:
    """The one image of a sample; None where it is only notes."""
    images = [file for ending, file in sample.items() if f".{ending}" in SUFFIXES]
    if not images and set(sample) <= NOTES:
        return None
    if len(images) != 1:
        raise DatasetError(
            f"{where}: {len(images) or 'no'} images (files ending in {', '.join(sample)[:100]!r}), "
            f"expected one ending in {', '.join(sorted(s[1:] for s in SUFFIXES))}"
        )
    return images[0]


def _label_of(sample: Sample, image: TarImage) -> str:
    """What a sample says of its class."""
    ending = next((ending for ending in LABELS if ending in sample), None)
    if ending is None:
        raise DatasetError(
            f"{image.name}: no class, expected a file ending in {', '.join(LABELS)} next to it; "
            "pack with 'tar --sort=name'"
        )
    text = _content(sample[ending]).strip()
    label = _json_label(text) if ending == "json" else text
    if not label:
        keys = f", or an object with {' or '.join(JSON_KEYS)}" if ending == "json" else ""
        raise DatasetError(f"{sample[ending].name}: no class, expected its name{keys}")
    return label


def _json_label(text: str) -> str | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((value[key] for key in JSON_KEYS if key in value), None)
    is_label = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value).strip() if is_label else None


def _class_name(label: str, image: TarImage, classes: Sequence[str] | None) -> str:
    """The name of a class that is given by name or by number."""
    if not NUMBER.fullmatch(label):
        return label
    if classes is None:
        raise DatasetError(
            f"{image.name}: class {label} is a number that nothing names; put {CLASS_FILES[0]}, a "
            "name a line from class 0 on, beside the tar files, or write names instead of numbers"
        )
    if not 0 <= int(label) < len(classes):
        raise DatasetError(
            f"{image.name}: class {label}, but {CLASS_FILES[0]} names 0 to {len(classes) - 1}"
        )
    return classes[int(label)]


def _content(file: TarImage) -> str:
    """The text of a small file."""
    try:
        # No more than needed to see that it is too long.
        return _text(replace(file, size=min(file.size, MAX_TEXT + 1)).read(), file.name)
    except ImageError as error:
        raise DatasetError(f"{file.name}: {error}") from error


def _text(data: bytes, where: str) -> str:
    if len(data) > MAX_TEXT:
        raise DatasetError(f"{where}: more than {MAX_TEXT:,} bytes, expected names of classes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: not text in UTF-8; save it as such") from error


def _classes(text: str, where: str) -> tuple[str, ...]:
    """The names in the lines of a text: every line counts, or all numbers after it would move."""
    lines = text.removesuffix("\n").split("\n")
    names = tuple(line.strip(" \t\r") for line in lines)
    if "" in names:
        raise DatasetError(
            f"{where}: line {names.index('') + 1} is empty, expected the name of class "
            f"{names.index('')}; write a name a line from class 0 on"
        )
    try:
        check_class_names(names)
    except ValueError as error:
        raise DatasetError(f"{where}: {error}; write a name a line from class 0 on") from error
    return names
