"""A few hundred damaged and hostile inputs for every loader; `make fuzz` runs many more."""

import os
from pathlib import Path

import pytest
from fuzzing import Case, Watch, cases, explore, make_seeds

NAMES = (
    "image, bytes",
    "image, noise",
    "model.pt, bytes",
    "model.pt, records",
    "model.pt, values",
    "checkpoint, bytes",
    "checkpoint, records",
    "checkpoint, values",
    "build record",
    "engine, bytes",
    "engine, manifest",
    "engine, weights",
    "manifest",
    "parquet, bytes",
    "parquet, names",
    "tar, bytes",
    "tar, members",
)


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    folder = tmp_path_factory.mktemp("fuzz") / "inputs"
    folder.mkdir()
    return Watch(folder)


@pytest.fixture(scope="module")
def targets(watch: Watch) -> dict[str, object]:
    return cases(make_seeds(watch.folder))


@pytest.mark.parametrize("name", NAMES)
def test_hostile_inputs_are_read_or_refused(
    targets: dict[str, object], watch: Watch, name: str
) -> None:
    number = 0 if "CI" in os.environ else int.from_bytes(os.urandom(4))
    before = watch.inputs
    explore(targets[name], watch, 100, number)
    assert watch.inputs - before >= 50


def test_every_target_is_run(targets: dict[str, object]) -> None:
    assert tuple(targets) == NAMES


def test_the_watch_notices_what_is_forbidden(watch: Watch, tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "secret").write_text("")

    def open_outside(data: bytes, folder: Path) -> None:
        (tmp_path / "secret").read_bytes()

    def start(data: bytes, folder: Path) -> None:
        subprocess.run(["true"], check=True)

    def crash(data: bytes, folder: Path) -> None:
        raise IndexError

    for read in (open_outside, start):
        with pytest.raises(AssertionError):
            watch.run(Case(read, b""))
    with pytest.raises(IndexError):
        watch.run(Case(crash, b""))
