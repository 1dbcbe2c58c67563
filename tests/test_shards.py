"""Which files of a test set are meant."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import assert_refused, samples_of, table_of, tar_of, write_parquet

from lipdeploy.datasets import scan_test_set
from lipdeploy.datasets.shards import expanded
from lipdeploy.errors import DatasetError

Cli = Callable[..., tuple[int, str, str]]


@settings(max_examples=30)
@given(first=st.integers(0, 30), last=st.integers(0, 30), zeros=st.tuples(*[st.integers(0, 4)] * 2))
def test_a_pattern_means_what_a_shell_makes_of_it(
    first: int, last: int, zeros: tuple[int, int]
) -> None:
    ends = [f"{number:0{width}d}" for number, width in zip((first, last), zeros, strict=True)]
    pattern = f"a-{{{ends[0]}..{ends[1]}}}-{{1..2}}.tar"
    echo = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, check=True)
    assert [str(path) for path in expanded(pattern)] == echo.stdout.decode().split()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with a good file, to be copied."""
    write_parquet(tmp_path / "good.parquet", table_of([b"x", b"y"], ["a", "b"]))
    (tmp_path / "good.tar").write_bytes(tar_of(samples_of([b"x", b"y"], ["a", "b"])))
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
        (
            ["train-1.tar", "train-0.tar"],
            r"the training part alone \(train-0.tar\), none of test; name .*, as .*in/train-0.tar$",
        ),
        (["test/training.parquet"], "the training part alone"),
        (["b.txt"], r"expected folders test/<class>/\*"),
    ],
)
def test_folders_that_leave_it_open_are_refused(
    shards: Path, files: list[str], message: str
) -> None:
    for name in files:
        target = shards / "in" / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(b"")
    with pytest.raises(DatasetError, match=message):
        scan_test_set(str(shards / "in"))


def test_tables_in_a_folder_of_images_do_not_count(image_folder: Path, shards: Path) -> None:
    for folder in (image_folder, image_folder / "test"):
        shutil.copy(shards / "good.parquet", folder / "images.parquet")
    assert len(scan_test_set(str(image_folder))) == 24


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "a.tar.gz", b"", "a compressed tar file; decompress it")
    kinds = "expected a folder, a .csv list, .parquet or .tar files, or one of cifar10"
    assert_refused(tmp_path / "a.xyz", b"", kinds)


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
