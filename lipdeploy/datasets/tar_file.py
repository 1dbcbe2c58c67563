"""Files inside of a tar file, found once and read where they are; nothing is extracted."""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lipdeploy.errors import DatasetError, ImageError, readable
from lipdeploy.images import StoredImage, check_bytes

LONGEST_HEADER = 1 << 17
"""Bytes of headers that a member may have: its name and the like; tarfile itself would read any
number, and copies what they say once a header."""

ZEROS_AT_ONCE = 1 << 20
"""Bytes behind the end of a tar file that are read at a time."""

OF_ONE = {"path", "size"}
"""Fields that no global header can set: they are different in each member."""


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
    """A file whose headers tarfile reads: so many bytes `left` of them until it is set again."""

    left = LONGEST_HEADER

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.left -= size
        return super().read(size)


def members(archive: Path) -> Iterator[TarImage]:
    """The files inside of a tar file, in order; only their headers are read.

    Raises:
        DatasetError: if it is damaged or cut off, holds anything else than files and folders, or
            anything behind its end.
    """
    advice = "a compressed one must be decompressed first"
    with readable(archive, "tar file", advice), _Headers(io.FileIO(archive)) as stream:
        length = os.fstat(stream.fileno()).st_size
        with tarfile.open(fileobj=stream, mode="r:") as opened:
            end = opened.offset = 0
            while not _is_end(archive, stream, opened.offset):
                member = _next_member(archive, opened)
                _check_member(archive, member, end, length)
                end = member.offset_data + member.size
                if not member.isdir():
                    yield TarImage(archive, member.name, member.offset_data, member.size)


def _is_end(archive: Path, stream: _Headers, offset: int) -> bool:
    """Whether zeros from `offset` on end the tar file; if not, leaves the stream there."""
    stream.seek(offset)
    stream.left = LONGEST_HEADER
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise DatasetError(f"{archive}: cut off at byte {offset:,}; copy it again")
    if any(block):
        stream.seek(offset)
        return False
    # A lost header, or a second tar file behind this one, is never taken for a smaller test set.
    while rest := stream.read1(ZEROS_AT_ONCE):
        if any(rest):
            raise DatasetError(
                f"{archive}: ends at byte {offset:,}, but more follows; if it is several tar files "
                "in one, give them one by one, else copy it again"
            )
    return True


def _next_member(archive: Path, opened: tarfile.TarFile) -> tarfile.TarInfo:
    # Or tarfile applies all that was ever in global headers to each member that follows.
    opened.pax_headers = {}
    # Not opened.next(), which keeps all members and takes a bad one for the end.
    member = tarfile.TarInfo.fromtarfile(opened)
    if fields := sorted(OF_ONE & opened.pax_headers.keys()):
        raise DatasetError(f"{archive}: one {fields[0]} for all of its files; pack the files again")
    return member


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
