"""Test sets in Parquet files and in WebDataset's tar files."""

import csv
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from helpers import own_test_set
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from shard_files import STRUCT, features, samples_of, table_of, tar_of, write_parquet

from lipdeploy import Predictor
from lipdeploy.datasets import LabelledSources, scan_folder, scan_test_set
from lipdeploy.datasets.shards import expanded
from lipdeploy.errors import DatasetError, ImageError
from lipdeploy.evaluation import outcomes

Cli = Callable[..., tuple[int, str, str]]
BROKEN = b"no image"

blobs = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=40)


@pytest.fixture
def own(source: Path, tmp_path: Path) -> Path:
    """The bundled images and one that is broken, as a folder."""
    folder = own_test_set(tmp_path / "own", source / "samples")
    (folder / "test" / "dog" / "dog-0000-broken.jpg").write_bytes(BROKEN)
    return folder


def as_list(folder: Path, images: LabelledSources[Path]) -> str:
    rows = [f"{path},{images.classes[k]}" for k, path in named(images)]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows]))
    return str(folder / "list.csv")


def named(images: LabelledSources[Path]) -> list[tuple[int, Path]]:
    return list(zip(images.labels, images.sources, strict=True))


def contents(images: LabelledSources[Path]) -> tuple[list[bytes], list[str]]:
    names = [images.classes[label] for label in images.labels]
    return [path.read_bytes() for path in images.sources], names


def as_parquet(folder: Path, images: LabelledSources[Path]) -> str:
    return str(write_parquet(folder / "test.parquet", table_of(*contents(images))))


def as_hugging_face(folder: Path, images: LabelledSources[Path]) -> str:
    """Numbers in another order than that of the names; two files, and one of the training part."""
    data, names = contents(images)
    classes = ["unused", *sorted(images.classes, reverse=True)]
    table = table_of(data, [classes.index(name) for name in names], classes, is_struct=True)
    folder /= "data"
    write_parquet(folder / "test-00000-of-00002.parquet", table.slice(0, 9), compression="zstd")
    write_parquet(folder / "test-00001-of-00002.parquet", table.slice(9), data_page_version="2.0")
    write_parquet(folder / "train-00000-of-00001.parquet", table.slice(3, 4))
    return str(folder)


def as_tar(folder: Path, images: LabelledSources[Path]) -> str:
    (folder / "test.tar").write_bytes(tar_of(samples_of(*contents(images))))
    return str(folder / "test.tar")


def as_tars_with_numbers(folder: Path, images: LabelledSources[Path]) -> str:
    """As a pattern; the names of the classes are in the last file."""
    data, names = contents(images)
    order = sorted(images.classes, reverse=True)
    files = samples_of(data, [order.index(name) for name in names])
    lines = "".join(f"{name}\r\n" for name in order).encode()
    (folder / "t-008.tar").write_bytes(tar_of(files[:10]))
    (folder / "t-009.tar").write_bytes(tar_of([]))
    (folder / "t-010.tar").write_bytes(tar_of([*files[10:], ("classes.txt", lines)]))
    return str(folder / "t-{008..010}.tar")


def as_tars_with_json(folder: Path, images: LabelledSources[Path]) -> str:
    """In the folder `test`, with the names of the classes beside it, as CLIP's benchmark has it."""
    data, names = contents(images)
    folder /= "wds"
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(images.classes))
    labels = [json.dumps({"label": images.classes.index(name)}) for name in names]
    (folder / "test" / "0.tar").write_bytes(tar_of(samples_of(data, labels, "json")))
    return str(folder)


KINDS = [
    as_list,
    as_parquet,
    as_hugging_face,
    as_tar,
    as_tars_with_numbers,
    as_tars_with_json,
]


@pytest.mark.parametrize("write", KINDS)
def test_the_same_images_give_the_same_evaluation_however_they_are_stored(
    own: Path,
    small_engine: Path,
    tmp_path: Path,
    write: Callable[[Path, LabelledSources[Path]], str],
) -> None:
    folder = scan_folder(own, "test")
    stored = scan_test_set(write(tmp_path, folder))
    assert stored.classes == folder.classes
    assert stored.sha256() == folder.sha256()
    with Predictor(small_engine, batch_size=4) as predictor:
        found, expected = (
            list(outcomes(predictor, images.in_order_of(predictor.manifest.classes)))
            for images in (stored, folder)
        )
    assert len(found) == 21
    for one, other in zip(found, expected, strict=True):
        assert one == replace(other, result=replace(other.result, path=one.result.path))
    assert len({outcome.result.path for outcome in found}) == 21


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


names = st.text(
    st.characters(exclude_characters="/.\0", exclude_categories=["Cs"]), min_size=1, max_size=60
)


@settings(max_examples=50)
@given(made=blobs, keys=st.lists(names, min_size=40, max_size=40, unique=True))
def test_whatever_the_names_in_a_tar_file_its_images_are_read(
    tmp_path_factory: pytest.TempPathFactory, made: list[bytes], keys: list[str]
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    files = []
    for index, (key, image) in enumerate(zip(keys, made, strict=False)):
        stem = f"./{index}/{key}"  # keys of one sample must not be those of the next
        files += [(f"{stem}.png", image), (f"{stem}.seg.png", b"x"), (f"{stem}.CLS", b" a b\n")]
    path.write_bytes(tar_of([("README.md", b"hi"), ("__meta__", b"{}"), *files, ("._0.jpg", b"")]))
    images = scan_test_set(str(path))
    assert (images.classes, len(images)) == (("a b",), len(made))
    assert [source.read() for source in images.sources] == made
    assert [source.name for source in images.sources] == [
        f"{path}/{name}" for name, _ in files[::3]
    ]


@given(made=blobs, where=st.floats(0, 1))
def test_a_tar_file_that_was_cut_off_is_refused_and_never_taken_for_a_smaller_one(
    tmp_path_factory: pytest.TempPathFactory, made: list[bytes], where: float
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    data = tar_of(samples_of(made, ["a"] * len(made)))
    path.write_bytes(data[: int(where * len(data))])
    with suppress(DatasetError):
        images = scan_test_set(str(path))
        assert [source.read() for source in images.sources] == made


@settings(max_examples=30)
@given(first=st.integers(0, 30), last=st.integers(0, 30), zeros=st.tuples(*[st.integers(0, 4)] * 2))
def test_a_pattern_means_what_a_shell_makes_of_it(
    first: int, last: int, zeros: tuple[int, int]
) -> None:
    ends = [f"{number:0{width}d}" for number, width in zip((first, last), zeros, strict=True)]
    pattern = f"a-{{{ends[0]}..{ends[1]}}}-{{1..2}}.tar"
    echo = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, check=True)
    assert [str(path) for path in expanded(pattern)] == echo.stdout.decode().split()


def test_limit_report_and_csv_work_as_with_a_folder(
    run_cli: Cli, own: Path, small_engine: Path, tmp_path: Path
) -> None:
    folder = scan_folder(own, "test")
    rows = []
    for number, dataset in enumerate(
        [str(own), as_parquet(tmp_path, folder), as_tar(tmp_path, folder)]
    ):
        table, page = tmp_path / f"{number}.csv", tmp_path / f"{number}.html"
        arguments = ["--limit", "11", "--csv", table, "--report", page, "--json"]
        status, output, _ = run_cli("evaluate", small_engine, dataset, *arguments)
        assert (status, json.loads(output)["images"]) == (0, 11)
        assert page.read_text().count("data:image/png;base64,") >= 6
        rows.append(list(csv.DictReader(io.StringIO(table.read_text()))))
    paths = [[row.pop("path") for row in part] for part in rows]
    assert rows[0] == rows[1] == rows[2]
    spread = [index * 21 // 11 for index in range(11)]
    assert paths[1] == [f"{tmp_path / 'test.parquet'}#{index}" for index in spread]
    assert paths[2] == [f"{tmp_path / 'test.tar'}/{index:04d}.jpg" for index in spread]


def test_an_evaluation_is_gone_on_with_from_the_same_images_in_another_file(
    run_cli: Cli, own: Path, small_engine: Path, tmp_path: Path
) -> None:
    folder = scan_folder(own, "test")
    results: list[Path | str] = ["--resume", tmp_path / "results", "--json", "--batch", "4"]
    first = run_cli("evaluate", small_engine, as_parquet(tmp_path, folder), *results)
    again = run_cli("evaluate", small_engine, as_tar(tmp_path, folder), *results)
    summaries = [json.loads(output) for _, output, _ in (first, again)]
    assert [summary["resumed"] for summary in summaries] == [0, 21]
    assert summaries[0]["classes"] == summaries[1]["classes"]
    changed = samples_of(*contents(folder))
    (tmp_path / "other.tar").write_bytes(tar_of(changed[2:]))
    status, _, errors = run_cli("evaluate", small_engine, tmp_path / "other.tar", *results)
    assert status == 1
    assert "begun with another dataset" in errors


def test_stored_images_are_attacked(
    run_cli: Cli, own: Path, small_engine: Path, tmp_path: Path
) -> None:
    folder = scan_folder(own, "test")
    found = []
    for dataset in (str(own), as_parquet(tmp_path, folder), as_tar(tmp_path, folder)):
        arguments = ["--attack", "--attack-images", "6", "--json"]
        output = run_cli("evaluate", small_engine, dataset, *arguments)[1]
        attack: dict[str, Any] = json.loads(output)["attack"]
        times = {"seconds", "seconds_per_image"}
        attack = {name: value for name, value in attack.items() if name not in times}
        found.append(attack)
    assert found[0] == found[1] == found[2]
    assert found[0]["images"] == 6


def test_a_benchmark_compares_answers_on_stored_images(
    run_cli: Cli, own: Path, small_engine: Path, tmp_path: Path
) -> None:
    (own / "test" / "dog" / "dog-0000-broken.jpg").unlink()
    answers = []
    for dataset in (str(own), as_tar(tmp_path, scan_folder(own, "test"))):
        arguments = ["--data", dataset, "--batch", "4", "--seconds", "0.05", "--json"]
        status, output, _ = run_cli("benchmark", small_engine, *arguments)
        answers.append({name: json.loads(output)[name] for name in ("images", "clean_accuracy")})
        assert status == 0
    assert answers[0] == answers[1]
    assert answers[0]["images"] == 20


def test_stored_images_can_be_predicted_one_by_one(
    own: Path, small_engine: Path, tmp_path: Path
) -> None:
    source = scan_test_set(as_parquet(tmp_path, scan_folder(own, "test"))).sources[0]
    with Predictor(small_engine) as predictor:
        (prediction,) = predictor(source)
    assert prediction.path == f"{tmp_path / 'test.parquet'}#0"


def test_a_model_with_other_classes_is_refused(
    run_cli: Cli, own: Path, small_engine: Path, tmp_path: Path
) -> None:
    data, labels = contents(scan_folder(own, "test"))
    for label, hint in (("shpi", "did you mean ship"), ("unicorn", "it knows airplane")):
        wrong = [label if name == "ship" else name for name in labels]
        write_parquet(tmp_path / "a.parquet", table_of(data, wrong))
        (tmp_path / "a.tar").write_bytes(tar_of(samples_of(data, wrong)))
        for name in ("a.parquet", "a.tar"):
            status, _, errors = run_cli("evaluate", small_engine, tmp_path / name)
            assert status == 1
            assert f"the model has no class {label!r}" in errors
            assert hint in errors


# What is refused


def parquet_of(table: pyarrow.Table) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def with_member(kind: bytes, size: int = 0) -> bytes:
    member = tarfile.TarInfo("0.jpg")
    member.type, member.size, member.linkname = kind, size, "/etc/passwd"
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


GOOD = table_of([b"x", b"y"], ["a", "b"])
NUMBERS = table_of([b"x", b"y"], [0, 1])
TWO = samples_of([b"x", b"y"], ["a", "b"])
REFUSED = [
    ("a.parquet", b"", "not a readable Parquet file"),
    ("a.parquet", BROKEN, "not a readable Parquet file"),
    ("a.parquet", parquet_of(GOOD)[:-30], "not a readable Parquet file"),
    ("a.parquet", parquet_of(GOOD.slice(0, 0)), "no rows"),
    ("a.parquet", parquet_of(GOOD.drop(["image"])), "no column for images, expected image or img;"),
    ("a.parquet", parquet_of(GOOD.rename_columns(["image", "y"])), r"it has \['image', 'y'\]"),
    ("a.parquet", parquet_of(NUMBERS), "'label' is int64, and nothing in the file names the cl"),
    (
        "a.parquet",
        parquet_of(NUMBERS.replace_schema_metadata(features(["a"]))),
        "row 1 has label 1, which the file does not name",
    ),
    (
        "a.parquet",
        parquet_of(NUMBERS.replace_schema_metadata(features([1, 2]))),
        "nothing in the file names the classes",
    ),
    ("a.parquet", parquet_of(table_of([b"x"], [-1], ["a"])), "row 0 has label -1"),
    ("a.parquet", parquet_of(table_of([b"x"], [0.5], ["a"])), "'label' is double"),
    ("a.parquet", parquet_of(table_of([b"x"] * 2, ["a", None])), "row 1 has no label"),
    ("a.parquet", parquet_of(table_of([b"x"], ["a\n"])), "is no name of a class; change the label"),
    (
        "a.parquet",
        parquet_of(pyarrow.table({"img": [[1, 2]], "label": ["a"]})),
        "'img' is list<.*>, expected encoded images",
    ),
    ("a.tar", b"", "not a readable tar file"),
    ("a.tar", BROKEN, "not a readable tar file"),
    ("a.tar", tar_of([]), "no samples, expected files as 0000.jpg"),
    ("a.tar", tar_of([("a.txt", b"hi")]), "no samples"),
    ("a.tar", with_member(tarfile.SYMTYPE), "'0.jpg' is a link or a device"),
    ("a.tar", with_member(tarfile.LNKTYPE), "'0.jpg' is a link or a device"),
    ("a.tar", with_member(tarfile.CHRTYPE), "'0.jpg' is a link or a device"),
    ("a.tar", with_member(tarfile.GNUTYPE_SPARSE), "'0.jpg' is a link or a device"),
    ("a.tar", with_member(tarfile.REGTYPE, 1 << 50), "'0.jpg' is cut off"),
    ("a.tar", with_member(tarfile.REGTYPE, -4096), "an impossible place or size"),
    ("a.tar", with_member(tarfile.GNUTYPE_LONGNAME, 1 << 40), r"header of \d+ bytes"),
    ("a.tar", with_member(tarfile.XHDTYPE, -1 << 40), r"header of -\d+ bytes"),
    ("a.tar", tar_of(TWO).replace(b"0001.jpg", b"1.jpg___"), r"not a readable .*bad checksum"),
    ("a.tar", tar_of(TWO[:-1]), "0001.jpg: no class, expected a file ending in cls, txt, json"),
    ("a.tar", tar_of([*TWO, ("2.cls", b"a")]), r"2: no images \(files ending in 'cls'\)"),
    ("a.tar", tar_of([*TWO, ("0001.png", b"a")]), "0001: 2 images"),
    ("a.tar", tar_of([*TWO, ("2.npy", b""), ("2.cls", b"a")]), "2: no images .*'npy, cls'"),
    ("a.tar", tar_of([*TWO, TWO[-1]]), "0001: two files of one name"),
    ("a.tar", tar_of(samples_of([b"x"], [3])), "class 3 is a number that nothing names; put clas"),
    (
        "a.tar",
        tar_of([*samples_of([b"x"], [3]), ("classes.txt", b"a\nb\n")]),
        "class 3, but classes.txt names 0 to 1",
    ),
    (
        "a.tar",
        tar_of([*TWO, ("x/classes.txt", b"a"), ("y/classes.txt", b"b")]),
        "several classes.txt that differ",
    ),
    ("a.tar", tar_of([("0.jpg", b""), ("0.cls", b"\xff")]), "0.cls: not text in UTF-8"),
    ("a.tar", tar_of([("0.jpg", b""), ("0.cls", b" ")]), "0.cls: no class, expected its name"),
    ("a.tar", tar_of([("0.jpg", b""), ("0.cls", b"a" * 2_000_000)]), "more than 1,048,576 bytes"),
    ("a.tar", tar_of([("0.jpg", b""), ("0.cls", b"a\nb")]), "is no name of a class; change it"),
    ("a.tar", tar_of(samples_of([b"x"], ["[1]"], "json")), "or an object with class_name or cl"),
    ("a.tar", tar_of(samples_of([b"x"], ['{"label": true}'], "json")), "no class, expected its"),
    ("a.tar", tar_of(samples_of([b"x"], ["{"], "json")), "no class, expected its name"),
    ("a.tar.gz", b"", "a compressed tar file; decompress it"),
    ("a.zip", b"", "neither a folder, a .csv list, .parquet or .tar files, nor one of cifar10"),
]


@pytest.mark.parametrize(("name", "data", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_files_that_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=message) as refused:
        scan_test_set(str(tmp_path / name))
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_many_rows_out_of_few_bytes_are_refused(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", table_of([None] * 999_999, ["a"] * 999_999), 999_999
    )
    assert path.stat().st_size < 9999
    with pytest.raises(DatasetError, match="has more rows than bytes"):
        scan_test_set(str(path))


def test_images_that_grow_by_far_when_they_are_decompressed_are_refused(tmp_path: Path) -> None:
    options = {"compression": "zstd", "use_dictionary": False}
    table = table_of([bytes(1 << 20)] * 300, ["a"] * 300)
    path = write_parquet(tmp_path / "a.parquet", table, 300, **options)
    with pytest.raises(DatasetError, match=r"row group 0 .*grows from .* to 314,.* bytes when"):
        scan_test_set(str(path))


def test_an_image_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as stream:
        member = tarfile.TarInfo("0.jpg")
        member.size = 201 << 20
        stream.write(member.tobuf())
        stream.seek(member.size, 1)
        stream.write(tar_of([("0.cls", b"a")]))
    (source,) = scan_test_set(str(tmp_path / "a.tar")).sources
    with pytest.raises(ImageError, match="larger than 200 MiB"):
        source.read()


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


def test_files_that_change_while_they_are_read_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(TWO))
    first, second = scan_test_set(str(path)).sources
    path.write_bytes(tar_of(TWO)[: second.offset])
    assert first.read() == b"x"
    with pytest.raises(ImageError, match="the tar file ends inside of it"):
        second.read()
    path.unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        first.read()


# Which files are meant


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with a good file, to be copied."""
    write_parquet(tmp_path / "good.parquet", GOOD)
    (tmp_path / "good.tar").write_bytes(tar_of(TWO))
    (tmp_path / "in").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["b.tar", "a.tar", "c.txt"], ["a.tar", "b.tar"]),
        (["test.tar", "train-0.tar", "test-1.tar"], ["test-1.tar", "test.tar"]),
        (["validation-0.parquet", "val-1.parquet"], ["val-1.parquet", "validation-0.parquet"]),
        (["testament-0.tar", "b.tar"], ["b.tar", "testament-0.tar"]),
        (["train.tar", "test/b.tar"], ["test/b.tar"]),
        (["test_b.tar", "val_b.tar"], ["test_b.tar"]),
    ],
)
def test_the_test_part_of_a_folder_counts(shards: Path, files: list[str], taken: list[str]) -> None:
    for name in files:
        target = shards / "in" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(shards / ("good.tar" if ".tar" in name else "good.parquet"), target)
    found = [source.name for source in scan_test_set(str(shards / "in")).sources]
    origins = list(
        dict.fromkeys(name.rpartition("#")[0] or name.rpartition("/")[0] for name in found)
    )
    assert origins == [str(shards / "in" / name) for name in taken]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.tar", "b.parquet"], "holds .parquet and .tar files; name those"),
        (["train.tar", "val.tar"], r"several parts \(train.tar, val.tar\), none of test; name"),
        (["train.tar", "b.tar"], "none of test"),
        (["b.txt"], r"expected folders test/<class>/\*"),
    ],
)
def test_folders_that_leave_it_open_are_refused(
    shards: Path, files: list[str], message: str
) -> None:
    for name in files:
        (shards / "in" / name).write_bytes(b"")
    with pytest.raises(DatasetError, match=message):
        scan_test_set(str(shards / "in"))


def test_tables_in_a_folder_of_images_do_not_count(own: Path) -> None:
    write_parquet(own / "images.parquet", GOOD)
    write_parquet(own / "test" / "images.parquet", GOOD)
    assert len(scan_test_set(str(own))) == 21


def test_a_missing_file_is_named(shards: Path) -> None:
    shutil.copy(shards / "good.tar", shards / "a-1.tar")
    with pytest.raises(DatasetError, match=r"a-2.tar: no such file; give a file, a folder"):
        scan_test_set(str(shards / "a-{1..3}.tar"))
    with pytest.raises(DatasetError, match=r"200,000,000 files, limit 100,000; give a folder"):
        scan_test_set(str(shards / "{1..100000000}-{1..2}.tar"))


def test_a_pattern_that_the_shell_took_apart_is_told_before_any_work(
    run_cli: Cli, shards: Path
) -> None:
    arguments = [shards / "gone.onnx", shards / "good.tar", shards / "good.tar"]
    status, _, errors = run_cli("evaluate", *arguments)
    assert status == 2
    assert "good.tar: a test set, not a model; the test set comes last" in errors


def test_without_pyarrow_parquet_files_are_refused(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DatasetError, match=r"needs pyarrow; pip install 'lipdeploy\[parquet\]'"):
        scan_test_set(str(shards / "good.parquet"))


def test_other_columns_and_types_of_the_same_meaning_are_read(tmp_path: Path) -> None:
    image = pyarrow.array([{"path": "a", "bytes": b"x"}, None], pyarrow.struct(reversed(STRUCT)))
    columns = {"img": image, "class_name": pyarrow.array(["a", "b"]).dictionary_encode()}
    columns |= {"label": [0, 1], "image_id": [1, 2]}
    path = write_parquet(tmp_path / "a.PARQUET", pyarrow.table(columns))
    images = scan_test_set(str(path))
    assert (images.classes, list(images.labels)) == (("a", "b"), [0, 1])
    assert [read(source) for source in images.sources] == [b"x", None]
