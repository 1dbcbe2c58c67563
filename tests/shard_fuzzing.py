"""Hostile Parquet and tar files, for `fuzzing.py`."""

import io
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow
from hypothesis import strategies as st
from pyarrow import parquet
from shard_files import samples_of, table_of, tar_of

from lipdeploy.datasets import scan_test_set
from lipdeploy.errors import ImageError
from lipdeploy.images import network_input

Member = tuple[str, bytes, int | None, bytes]
KINDS = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.XHDTYPE)
KINDS += (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE)

SAMPLE: list[Member] = [
    ("9.jpg", tarfile.REGTYPE, None, b"no image"),
    ("9.cls", tarfile.REGTYPE, None, b"a"),
]

names = st.sampled_from(["0.jpg", "0.cls", "1.png", "1.json", "classes.txt", "../x.jpg", "/0.txt"])
contents = st.sampled_from([b"", b"a", b"7", b"a\nb", b'{"label": 1}', b"12 size=-9999\n"])
members: st.SearchStrategy[list[Member]] = st.lists(
    st.tuples(
        names | st.text(max_size=9),
        st.just(tarfile.REGTYPE) | st.sampled_from(KINDS),
        st.none() | st.none() | st.integers(-(2**62), 2**62) | st.integers(-1024, 1024),
        contents | st.binary(max_size=20),
    ),
    max_size=8,
)


def good_parquet_files(images: Sequence[bytes]) -> list[bytes]:
    """Small files of every kind of page, with names and with numbers."""
    names, numbers = ["b", "a"] * len(images), [1, 0] * len(images)
    texts = table_of(images, names[: len(images)])
    struct = table_of(images, numbers[: len(images)], ["a", "b"], is_struct=True)
    made = []
    for table in (texts, struct):
        made.append(_written(table, row_group_size=3, use_dictionary=False, compression="none"))
        made.append(_written(table, compression="zstd", data_page_version="2.0"))
        made.append(_written(table, write_batch_size=2, data_page_size=1))
    return made


def _written(table: pyarrow.Table, **options: object) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(table, stream, **options)
    return stream.getvalue()


def with_names(text: str) -> bytes:
    """A Parquet file of two classes that holds a text where their names should be."""
    table = table_of([b"x", b"y"], [0, 1])
    return _written(table.replace_schema_metadata({"huggingface": text}))


def good_tar_file(images: Sequence[bytes]) -> bytes:
    """Samples with all kinds of labels, and the names of the classes."""
    files = samples_of(images, [index % 2 for index in range(len(images))])
    more = [("x.png", images[0]), ("x.json", b'{"class": "a"}'), ("classes.txt", b"a\nb")]
    return tar_of([*files, *more])


def tarred(made: Sequence[Member]) -> bytes:
    """A good sample, then any headers, whose sizes need not be those of the contents."""
    parts = []
    for name, kind, size, content in [*SAMPLE, *made]:
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, len(content) if size is None else size
        parts += [member.tobuf(tarfile.GNU_FORMAT), content, bytes(-len(content) % 512)]
    return b"".join([*parts, bytes(1024)])


def read_set(name: str) -> Callable[[bytes, Path], None]:
    """As `evaluate` reads a test set: where it is accepted, images may still be refused."""

    def read(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        images = scan_test_set(str(path))
        assert len(images) <= len(data)
        for source in images.sources:
            with suppress(ImageError):
                assert np.all(network_input(source, 8).pixels <= 255.01)

    return read
