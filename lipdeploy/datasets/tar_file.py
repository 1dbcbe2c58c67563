"""Files inside of a tar file, found once and read where they are; nothing is extracted."""

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lipdeploy.errors import DatasetError, ImageError, one_line
from lipdeploy.images import StoredImage, check_bytes

LONGEST_HEADER = 1 << 20
"""Bytes of names and the like that a member may have; tarfile itself would read any number."""


@dataclass(frozen=True, slots=True)
class TarImage(StoredImage):
    """A file inside of a tar file, which is taken to be an image.

    Attributes:
        archive: the tar file.
        member: name of the file in it.
        offset: where its content begins.
        size: bytes of its content.
    """

    archive: Path
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """Tar file and name inside of it."""
        return f"{self.archive}/{self.member}"

    def read(self) -> bytes:
        """The image as it is stored; see `StoredImage.read`."""
        check_bytes(self.size)
        try:
            with self.archive.open("rb") as stream:
                stream.seek(self.offset)
                data = stream.read(self.size)
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror})") from error
        if len(data) < self.size:
            raise ImageError("the tar file ends inside of it; copy that again")
        return data


class _Headers(io.BufferedReader):
    """A file whose headers tarfile reads; none may be long."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def members(archive: Path) -> Iterator[TarImage]:
    """The files inside of a tar file, in order; only their headers are read.

    Raises:
        DatasetError: if it is damaged or cut off, or holds anything else than files and folders.
    """
    with _reading(archive), _Headers(io.FileIO(archive)) as stream:
        length = os.fstat(stream.fileno()).st_size
        with tarfile.open(fileobj=stream, mode="r:") as opened:
            end = opened.offset = 0
            while not _is_end(archive, stream, opened.offset):
                # Not opened.next(), which keeps all members and takes a bad one for the end.
                member = tarfile.TarInfo.fromtarfile(opened)
                _check_member(archive, member, end, length)
                end = member.offset_data + member.size
                if not member.isdir():
                    yield TarImage(archive, member.name, member.offset_data, member.size)


def _is_end(archive: Path, stream: IO[bytes], offset: int) -> bool:
    """Whether the block at `offset` is the end of the tar file: zeros; leaves the stream there."""
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise DatasetError(f"{archive}: cut off at byte {offset:,}; copy it again")
    stream.seek(offset)
    return block == bytes(tarfile.BLOCKSIZE)


def _check_member(archive: Path, member: tarfile.TarInfo, end: int, length: int) -> None:
    """Raise DatasetError unless a member is a plain file or a folder that lies behind `end`."""
    where = f"{archive}: {member.name!r:.100}"
    is_file = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    if not (is_file or member.isdir()):
        raise DatasetError(f"{where} is a link or a device, expected files; pack the files")
    if member.size < 0 or member.offset_data < end:
        raise DatasetError(f"{where} has an impossible place or size; pack the files again")
    if member.offset_data + member.size > length:
        raise DatasetError(f"{where} is cut off; copy the tar file again")


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """What tarfile raises on hostile bytes, which is of many kinds, as DatasetError."""
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(
            f"{archive}: not a readable tar file ({one_line(error)}); a compressed one must be "
            "decompressed first"
        ) from error
