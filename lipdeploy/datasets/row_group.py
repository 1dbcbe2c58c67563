"""Images in a column of a Parquet file, read when they are needed."""

import threading
from bisect import bisect_right
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lipdeploy.errors import ImageError, one_line
from lipdeploy.images import StoredImage, check_bytes

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

OPEN_GROUPS = 2
"""Row groups that are kept open: threads ask for images that are near each other."""

WAITING, WAITING_BYTES = 1024, 64 << 20
"""Most images, and bytes of them, that one group keeps of those that were passed over."""

BUFFER = 1 << 18
"""Bytes that are read from the file at a time; what is in memory of a row group is one page of it,
which is up to its writer: pyarrow puts 1,024 images into one, or as many as the group has."""


def open_parquet(
    path: Path,
    names: Sequence[str] = (),
    metadata: "parquet.FileMetaData | None" = None,
) -> "parquet.ParquetFile":
    """Open a Parquet file.

    Args:
        path: of the file.
        names: columns that are read as a dictionary of what differs in them.
        metadata: of the file, where it is known.
    """
    from pyarrow import parquet

    return parquet.ParquetFile(
        path,
        buffer_size=BUFFER,
        # Or it reads a column of a whole row group before the first page of it.
        pre_buffer=False,
        metadata=metadata,
        read_dictionary=list(names),
        page_checksum_verification=True,
    )


class RowGroup:
    """One column of a row group, which can only be read from its start on.

    Several threads ask for rows in about their order. Those that are passed over on the way to a
    later one are kept for a while; what is not kept is read again from the start. Only one thread
    may use it at a time.
    """

    def __init__(self, table: "Table", number: int) -> None:
        self._table, self._number = table, number
        self._start()

    def close(self) -> None:
        """Let go of all that is in memory, whoever still knows this group."""
        self._cells.close()
        self._waiting.clear()

    def _start(self) -> None:
        self._cells, self._next = _cells(self._table, self._number), 0
        self._waiting: dict[int, pyarrow.Array] = {}
        self._bytes = 0

    def cell(self, row: int) -> bytes | None:
        """What is in a row, counted from the start of the group; None for nothing.

        Raises:
            ImageError: if it is too large, or the group ends before.
            Exception: of pyarrow's many kinds, if the file is damaged.
        """
        found = self._waiting.pop(row, None)
        if found is None:
            found = self._reach(row)
        else:
            self._bytes -= found.get_total_buffer_size()
        check_bytes(found.nbytes)
        value = found[0].as_py()
        image: bytes | None = value["bytes"] if isinstance(value, dict) else value
        return image

    def _reach(self, row: int) -> "pyarrow.Array":
        if row < self._next:
            self._start()
        for cell in self._cells:
            self._next += 1
            if self._next > row:
                return cell
            self._wait(self._next - 1, cell)
        raise ImageError("its row group is damaged, or ends before this row")

    def _wait(self, row: int, cell: "pyarrow.Array") -> None:
        self._waiting[row] = cell
        self._bytes += cell.get_total_buffer_size()
        while self._bytes > WAITING_BYTES or len(self._waiting) > WAITING:
            self._bytes -= self._waiting.pop(next(iter(self._waiting))).get_total_buffer_size()


def _cells(table: "Table", number: int) -> Generator["pyarrow.Array"]:
    """Arrays of one row each, so that never more than one image is taken out of its page."""
    with open_parquet(table.path, metadata=table.metadata) as file:
        where = {"columns": [table.column], "row_groups": [number]}
        for batch in file.iter_batches(batch_size=1, use_threads=False, **where):
            yield batch.column(0)


class OpenGroups:
    """The row groups of which anything is in memory, at most `OPEN_GROUPS` of all files.

    Any thread may ask; one reads at a time, so that no group lives on in a thread that still reads
    it. What takes long, decoding, comes after that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[Table, int], RowGroup] = {}

    def cell(self, table: "Table", number: int, row: int) -> bytes | None:
        """What is in a row of a row group; see `RowGroup.cell`."""
        key = table, number
        with self._lock:
            group = self._open.pop(key, None)
            if group is None:
                while len(self._open) >= OPEN_GROUPS:
                    self._open.pop(next(iter(self._open))).close()
                group = RowGroup(table, number)
            # At the end: the one that was asked for least recently comes first.
            self._open[key] = group
            return group.cell(row)


@dataclass(frozen=True, eq=False)
class Table:
    """A Parquet file.

    Attributes:
        path: of the file.
        metadata: of the file; to read it for each row group takes long where there are many.
        column: where the encoded images are.
        starts: number of the first row of each row group; at last, how many rows there are.
        groups: those that are open, shared by all files.
    """

    path: Path
    metadata: "parquet.FileMetaData"
    column: str
    starts: tuple[int, ...]
    groups: OpenGroups

    def cell(self, row: int) -> bytes | None:
        """The encoded image in a row; see `RowGroup.cell`."""
        number = bisect_right(self.starts, row) - 1
        return self.groups.cell(self, number, row - self.starts[number])


@dataclass(frozen=True, slots=True)
class ParquetImage(StoredImage):
    """The image in one row of a Parquet file.

    Attributes:
        table: the file.
        row: counted from 0.
    """

    table: Table
    row: int

    @property
    def name(self) -> str:
        """File and row, as in test.parquet#17."""
        return f"{self.table.path}#{self.row}"

    def read(self) -> bytes:
        """The image as it is stored; see `StoredImage.read`."""
        try:
            found = self.table.cell(self.row)
        except ImageError:
            raise
        # pyarrow raises many kinds of errors on damaged files; all mean the same here.
        except Exception as error:
            raise ImageError(f"its row cannot be read ({one_line(error)})") from error
        if found is None:
            raise ImageError("no encoded image in this row; write the bytes of its file there")
        return found
