"""Writing files so that nobody ever reads half of one."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lipdeploy.errors import OutputError

if sys.platform != "win32":
    import fcntl


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
    # With the number of the process, so that two that write the same file do not share it.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
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
    link = previous.with_name(f".{previous.name}.{os.getpid()}.partial")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(path)
    except OSError:  # some file systems have no hard links
        write_atomically(path.read_bytes(), previous)
        return
    # Renaming one name of a file over another name of it does nothing and leaves both.
    link.replace(previous)
    link.unlink(missing_ok=True)


def remove_partial_files(folder: Path, names: Iterable[str]) -> None:
    """Remove what killed writers of these files left; only where nobody else writes them."""
    for name in names:
        for partial in folder.glob(f".{name}.*.partial"):
            partial.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where decoded datasets and measured times are kept: below $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lipdeploy"


def file_sha256(path: Path) -> str | None:
    """Hash of a file; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


@contextmanager
def only_writer(folder: Path, work: str, option: str) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder, until the end or death of this.

    Args:
        folder: what is written into.
        work: what the other process does there, for the message.
        option: the one that names the folder, for the message.

    Raises:
        OutputError: if another process is in it.
    """
    if sys.platform == "win32":  # has no such lock
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"{folder}: another process is {work} it; wait for it, or choose another {option}"
            ) from error
        yield
    finally:
        os.close(descriptor)


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


def check_output(path: Path) -> None:
    """Make sure, before long work, that a file can be written under this name; makes its folder.

    Raises:
        OutputError: if not.
    """
    make_writable_folder(path.parent)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of a file")


def not_writable(path: Path, error: OSError) -> OutputError:
    """The error for a file or folder that cannot be written."""
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); make room or give another place"
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the errors of the system into those that name the file and what to do.

    Raises:
        OutputError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise not_writable(path, error) from error
