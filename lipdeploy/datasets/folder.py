"""A folder with a folder of images for each class."""

from pathlib import Path

from lipdeploy.choices import check_class_names
from lipdeploy.datasets.labelled import LabelledSources, check_same_classes
from lipdeploy.errors import DatasetError
from lipdeploy.images import SUFFIXES

PARTS = ("train", "test")
"""Folders of a dataset, each with a folder for each class."""


def scan_folder(root: Path, part: str) -> LabelledSources[Path]:
    """List the images of `root`/`part`/<class>/*, classes and files in the order of their names.

    Raises:
        DatasetError: if the layout is another one, or a class has no image.
    """
    base = root / part
    if not base.is_dir():
        expected = f"{root}: expected folders {part}/<class>/* with images"
        raise DatasetError(f"{expected}, found {_found_instead(root, part)}")
    names = class_folders(base)
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
        pictures = _pictures(base / name)
        if not pictures:
            raise DatasetError(f"{base / name}: a class without images; add some or remove it")
        files += pictures
        labels += [label] * len(pictures)
    return LabelledSources(str(base), tuple(names), files, labels)


def _found_instead(root: Path, part: str) -> str:
    """What is in a folder without the part that is needed, and what to do about it."""
    if not root.is_dir():
        return f"no {root}"
    for folder in (root, root.parent):
        if folder.name in PARTS and (folder.parent / part).is_dir():
            return f"a part of such a dataset; give {folder.parent}"
    if not any(root.iterdir()):
        return "an empty folder"
    names = [name for name in class_folders(root) if name not in PARTS and _pictures(root / name)]
    if names:
        return f"class folders, such as {names[0]}; move them into {root / part}"
    return f"no {root / part}"


def _pictures(folder: Path) -> list[Path]:
    """Files of a folder that are images by their names, in order."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def class_folders(base: Path) -> list[str]:
    """Names of the folders in `base`, in order; hidden ones do not count."""
    return sorted(p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))


def check_test_classes(root: Path, classes: tuple[str, ...]) -> None:
    """Where a dataset has a test part: make sure, before training, that its classes are the same.

    Raises:
        DatasetError: if they are not; no image is read.
    """
    base = root / "test"
    if base.is_dir():
        check_same_classes(str(base), class_folders(base), classes, f"{root / 'train'}")
