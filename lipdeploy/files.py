"""Writing files so that nobody ever reads half of one."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from lipdeploy.errors import OutputError


def write_atomically(data: bytes, path: Path, *, previous: Path | None = None) -> None:
    """Write beside `path`, flush to disk, rename over `path`.

    Killed at any moment, it leaves the old file or the new one under `path`, never a part of one.

    Args:
        data: the content.
        path: the file.
        previous: a second name under which the old file is kept; it holds a whole file at any
            moment, too.

    Raises:
        OutputError: if it cannot be written; the old file is still there.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if previous is not None and path.exists():
                _keep(path, previous)
            partial.replace(path)
            _flush_folder(path.parent)
        finally:
            # What cannot be written can often not be removed either; the first error counts.
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise not_writable(path, error) from error


def _keep(path: Path, previous: Path) -> None:
    """Give the file a second name, without a moment in which the first one is missing."""
    link = previous.with_name(f".{previous.name}.partial")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(path)
    except OSError:  # some file systems have no hard links
        path.replace(previous)
        return
    # Renaming one name of a file over another name of it does nothing and leaves both.
    link.replace(previous)
    link.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power failure, where the system can do that for folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_writable_folder(folder: Path) -> None:
    """Make a folder, and make sure, before hours of work, that files can be written into it.

    Raises:
        OutputError: if not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"\0")
    except OSError as error:
        raise not_writable(folder, error) from error


def not_writable(path: Path, error: OSError) -> OutputError:
    """The error for a file or folder that cannot be written."""
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); make room or give another place"
    )
