"""Test sets in Parquet files."""

import io
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from shard_files import STRUCT, assert_refused, features, table_of, write_parquet

from lipdeploy.datasets import row_group, scan_test_set
from lipdeploy.errors import DatasetError, ImageError

Cli = Callable[..., tuple[int, str, str]]


@settings(max_examples=30)
@given(
    made=st.lists(st.none() | st.binary(min_size=1, max_size=300), min_size=1, max_size=40),
    rows=st.integers(1, 40),
    is_struct=st.booleans(),
    options=st.fixed_dictionaries(
        {
            "use_dictionary": st.booleans(),
            "compression": st.sampled_from(["none", "snappy", "zstd"]),
            "data_page_version": st.sampled_from(["1.0", "2.0"]),
            "write_batch_size": st.integers(1, 9),
            "data_page_size": st.integers(1, 500),
            "write_page_checksum": st.booleans(),
        }
    ),
    data=st.data(),
)
def test_rows_of_parquet_files_are_read_in_any_order_by_many_threads(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[bytes | None],
    rows: int,
    is_struct: bool,
    options: dict[str, Any],
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    write_parquet(path, table_of(made, ["a"] * len(made), is_struct=is_struct), rows, **options)
    sources = scan_test_set(str(path)).sources
    order = data.draw(st.lists(st.integers(0, len(made) - 1), max_size=80))
    assert [read(sources[index]) for index in order] == [made[index] for index in order]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, sources)) == made


def read(source: Any) -> bytes | None:
    """The content of a row; None where there is none."""
    try:
        found: bytes | None = source.read()
    except ImageError:
        found = None
    return found


def test_rows_that_were_passed_over_are_forgotten_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [bytes([index]) * 100 for index in range(60)]
    path = write_parquet(tmp_path / "a.parquet", table_of(made, ["a"] * 60), rows=60)
    monkeypatch.setattr("lipdeploy.datasets.row_group.WAITING_BYTES", 500)
    monkeypatch.setattr("lipdeploy.datasets.row_group.WAITING", 3)
    sources = scan_test_set(str(path)).sources
    for index in (59, 58, 2, 57, 57, 0, 59):
        assert sources[index].read() == made[index]


def test_no_more_than_two_row_groups_are_in_memory(tmp_path: Path) -> None:
    """Each has 1 MB of images; a page may be there as it is stored, and as what is in it."""
    made = [bytes([index % 251]) + bytes(range(100)) * 200 for index in range(1000)]
    options = {"compression": "none", "use_dictionary": False}
    path = write_parquet(tmp_path / "a.parquet", table_of(made, ["a"] * 1000), 50, **options)
    images = scan_test_set(str(path))
    before = pyarrow.total_allocated_bytes()
    for source, image in zip(images.sources, made, strict=True):
        assert source.read() == image
        assert pyarrow.total_allocated_bytes() - before < 5_000_000


def one_image_a_page(path: Path, made: list[bytes], rows: int) -> Path:
    """A Parquet file of pages and row groups that hardly have more than what is asked for."""
    options = {"write_batch_size": 1, "data_page_size": 1, "use_dictionary": False}
    table = table_of(made, ["a"] * len(made))
    return write_parquet(path, table, rows, compression="none", **options)


def allocated_by_last_of(path: Path) -> int:
    """Bytes that pyarrow keeps after the last row was read and all others were passed over."""
    sources = scan_test_set(str(path)).sources
    before = pyarrow.total_allocated_bytes()
    assert sources[-1].read()
    return int(pyarrow.total_allocated_bytes() - before)


def test_what_was_passed_over_has_a_limit_in_bytes_and_one_in_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = one_image_a_page(tmp_path / "a.parquet", [bytes(10**6)] * 20, rows=20)
    small = one_image_a_page(tmp_path / "b.parquet", [b"x"] * 4000, rows=4000)
    monkeypatch.setattr(row_group, "WAITING_BYTES", 3_000_000)
    # The page that is being read is there as it is stored, and as what was in it.
    assert allocated_by_last_of(large) < 3_000_000 + 2_500_000
    monkeypatch.setattr(row_group, "WAITING", 10)
    # Besides, the buffer of the file.
    assert allocated_by_last_of(small) < row_group.BUFFER + 50_000


def test_many_threads_have_no_more_than_two_row_groups_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, most = set[int](), [0]
    really = row_group._cells

    def watched(table: Any, number: int) -> Iterator[Any]:
        cells = really(table, number)
        now.add(id(cells))
        most[0] = max(most[0], len(now))
        try:
            for cell in cells:
                time.sleep(1e-4)  # so that other threads come
                yield cell
        finally:
            now.remove(id(cells))

    monkeypatch.setattr(row_group, "_cells", watched)
    made = [bytes([index]) * 100 for index in range(200)]
    paths = [one_image_a_page(tmp_path / f"in/{name}.parquet", made, rows=1) for name in "ab"]
    sources = scan_test_set(str(paths[0].parent)).sources
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, sources)) == made * 2
    assert most == [2]


def parquet_of(table: pyarrow.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(table, stream, **options)
    return stream.getvalue()


def long_label(characters: int, kind: str = "string", *, is_dictionary: bool = True) -> bytes:
    labels = pyarrow.array(["b", "a" * characters], kind)
    table = pyarrow.table({"image": [b"x", b"y"], "label": labels})
    return parquet_of(table, use_dictionary=is_dictionary)


GOOD = table_of([b"x", b"y"], ["a", "b"])
NUMBERS = table_of([b"x", b"y"], [0, 1])


REFUSED = [
    (b"", "not a readable Parquet file"),
    (b"no image", "not a readable Parquet file"),
    (parquet_of(GOOD)[:-30], "not a readable Parquet file"),
    (parquet_of(GOOD.slice(0, 0)), "no rows"),
    (parquet_of(GOOD.drop(["image"])), "no column for images, expected image or img;"),
    (parquet_of(GOOD.rename_columns(["image", "y"])), r"it has \['image', 'y'\]"),
    (parquet_of(NUMBERS), "'label' is int64, and nothing in the file names the cl"),
    (
        parquet_of(NUMBERS.replace_schema_metadata(features(["a"]))),
        "row 1 has label 1, which the file does not name",
    ),
    (
        parquet_of(NUMBERS.replace_schema_metadata(features([1, 2]))),
        "nothing in the file names the classes",
    ),
    (parquet_of(table_of([b"x"], [-1], ["a"])), "row 0 has label -1"),
    (parquet_of(table_of([b"x"], [0.5], ["a"])), "'label' is double"),
    (parquet_of(table_of([b"x"] * 2, ["a", None])), "row 1 has no label"),
    (parquet_of(table_of([b"x"], ["a\n"])), "is no name of a class; change the label"),
    (long_label(5000), "a label of 5,000 bytes, limit 4,000; write names of classes"),
    (long_label(5001, is_dictionary=False), "a label of 5,001 bytes"),
    (long_label(5002, "large_string"), "a label of 5,002 bytes"),
    (long_label(1001), "no name of a class: 1,001 characters, limit 1,000; change the label"),
    (
        parquet_of(pyarrow.table({"img": [[1, 2]], "label": ["a"]})),
        "'img' is list<.*>, expected encoded images",
    ),
]


@pytest.mark.parametrize(("data", "message"), REFUSED, ids=[row[1][:40] for row in REFUSED])
def test_files_that_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    assert_refused(tmp_path / "a.parquet", data, message)


def test_many_rows_out_of_few_bytes_are_refused(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", table_of([None] * 999_999, ["a"] * 999_999), 999_999
    )
    assert path.stat().st_size < 9999
    with pytest.raises(DatasetError, match="has more rows than bytes"):
        scan_test_set(str(path))


def test_images_that_grow_by_far_when_they_are_decompressed_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"compression": "zstd", "use_dictionary": False}
    path = write_parquet(
        tmp_path / "a.parquet", table_of([bytes(1 << 20)] * 2, ["a", "b"]), **options
    )
    assert len(scan_test_set(str(path))) == 2
    monkeypatch.setattr("lipdeploy.datasets.parquet.HARMLESS_BYTES", 1 << 20)
    message = r"row group 0 of {} says that it grows from .* to 2,097,.* bytes when"
    with pytest.raises(DatasetError, match=message.format("image")):
        scan_test_set(str(path))
    labels = [f"{number:07d}" + "a" * ((1 << 20) - 11) for number in (1, 2)]
    write_parquet(path, table_of([b"x"] * 2, labels), **options)
    with pytest.raises(DatasetError, match=message.format("label")):
        scan_test_set(str(path))


def test_a_row_group_that_is_damaged_costs_its_images_and_no_others(tmp_path: Path) -> None:
    made = [bytes([index]) * 2000 for index in range(30)]
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    path = write_parquet(tmp_path / "a.parquet", table_of(made, ["a"] * 30), 10, **options)
    data = path.read_bytes()
    at = data.index(made[15])
    path.write_bytes(data[:at] + b"!" + data[at + 1 :])
    images = scan_test_set(str(path))
    for index, source in enumerate(images.sources):
        if 10 <= index < 20:
            with pytest.raises(
                ImageError, match=r"its row cannot be read|its row group is damaged"
            ):
                source.read()
        else:
            assert source.read() == made[index]
    assert images.sha256() == scan_test_set(str(path)).sha256()


def test_without_pyarrow_parquet_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    message = r"needs pyarrow; pip install 'lipdeploy\[parquet\]'"
    assert_refused(tmp_path / "a.parquet", parquet_of(GOOD), message)


def test_other_columns_and_types_of_the_same_meaning_are_read(tmp_path: Path) -> None:
    image = pyarrow.array([{"path": "a", "bytes": b"x"}, None], pyarrow.struct(reversed(STRUCT)))
    columns = {"img": image, "class_name": pyarrow.array(["a", "b"]).dictionary_encode()}
    columns |= {"label": [0, 1], "image_id": [1, 2]}
    path = write_parquet(tmp_path / "a.PARQUET", pyarrow.table(columns))
    images = scan_test_set(str(path))
    assert (images.classes, list(images.labels)) == (("a", "b"), [0, 1])
    assert [read(source) for source in images.sources] == [b"x", None]
