"""Evaluations that are killed and gone on with, and how much memory they take."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import own_test_set
from hypothesis import given
from hypothesis import strategies as st

from lipdeploy import Predictor, journal
from lipdeploy.datasets import LabelledSources, scan_folder
from lipdeploy.errors import OutputError
from lipdeploy.evaluation import Evaluation, Outcome, outcomes
from lipdeploy.journal import identity_of, open_journal
from lipdeploy.prediction import Certificate, Failure, Prediction

Cli = Callable[..., tuple[int, str, str]]
TIMES = {"engine_seconds", "certify_seconds", "seconds", "images_per_second", "resumed"}
CERTIFICATE = Certificate(0.1, 25.5, None, None, "network", ("a", "b"), None, {"network": 25.5})
SOME = [
    Outcome("cat", Prediction("a.png", "cat", 0, (1 / 3, -2e-300), CERTIFICATE)),
    Outcome("dog", Failure("b.png", "broken \u2028 \x1b")),
    Outcome("dog", Prediction("c.png", "cat", 0, (5.0, 0.1 + 0.2), None)),
]
IDENTITY = {
    "format": "x",
    "images": 5,
    "batch": 2,
    "guarantee": "network",
    "assumptions": ["a", "b"],
}


@pytest.fixture
def own(source: Path, tmp_path: Path) -> Path:
    return own_test_set(tmp_path / "own", source / "samples")


def numbers(output: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(output).items() if name not in TIMES}


def write(path: Path, made: list[Outcome]) -> None:
    with open_journal(path, IDENTITY) as opened:
        for outcome in made[opened.kept :]:
            opened.keep(outcome)


def read(path: Path) -> list[Outcome]:
    with open_journal(path, IDENTITY) as opened:
        return list(opened.outcomes())


@given(cut=st.integers(0, 2000))
def test_whatever_is_cut_off_whole_batches_come_back_as_they_were(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "1.jsonl"
    made = [SOME[index % 3] for index in range(5)]
    write(path, made)
    data = path.read_bytes()
    path.write_bytes(data[:cut])
    kept = read(path)
    whole = max(0, data[:cut].count(b"\n") - 1)
    assert kept == made[: whole if whole == 5 else whole // 2 * 2]
    write(path, made)
    assert path.read_bytes() == data


def test_a_line_that_is_no_json_ends_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    write(path, [SOME[0]] * 5)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = b"\0" * 20 + b"\n"
    path.write_bytes(b"".join(lines))
    assert read(path) == [SOME[0]] * 2


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (4, lambda lines: lines[4].replace(b'"cat"', b'"dog"')),
        (3, lambda lines: lines[3].replace(b"25.5", b"99.5")),
        (2, lambda _: b"{}\n"),
        (3, lambda lines: json.dumps(json.loads(lines[3])["outcome"]).encode() + b"\n"),
        (3, lambda lines: lines[4]),
    ],
    ids=["class", "radius", "empty", "no hash", "copy of another line"],
)
def test_a_line_that_is_not_as_it_was_written_ends_what_is_known(
    number: int, change: Callable[[list[bytes]], bytes], tmp_path: Path
) -> None:
    path, made = tmp_path / "1.jsonl", [SOME[0], SOME[0], SOME[0], SOME[2], SOME[0]]
    write(path, made)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    changed = change(lines)
    assert changed != lines[number]
    path.write_bytes(b"".join([*lines[:number], changed, *lines[number + 1 :]]))
    assert read(path) == made[: (number - 1) // 2 * 2]
    write(path, made)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("missing", ["class", "logits", "label", "certificate"])
def test_a_line_without_a_field_is_not_known_even_if_its_hash_is_right(
    missing: str, tmp_path: Path
) -> None:
    path = tmp_path / "1.jsonl"
    write(path, [SOME[0]] * 5)
    lines = path.read_bytes().splitlines(keepends=True)
    record = json.loads(lines[2])["outcome"]
    del record[missing]
    digest = hashlib.sha256(f"2 {json.dumps(record)}".encode()).hexdigest()[:16]
    lines[2] = json.dumps({"outcome": record, "sha256": digest}).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    assert read(path) == []


def test_lines_beyond_the_last_image_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    write(path, [SOME[0]] * 6)
    assert read(path) == [SOME[0]] * 5


@pytest.mark.parametrize("package", ["lipdeploy", "numpy", "pillow"])
def test_another_version_of_what_decodes_or_certifies_is_refused(
    small_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    with Predictor(small_engine) as predictor:
        before = identity_of(predictor, "0" * 64, 1, tight=False)
        with open_journal(tmp_path / "1.jsonl", before):
            pass
        monkeypatch.setattr(
            journal, "installed_version", lambda name: "0" if name == package else version(name)
        )
        after = identity_of(predictor, "0" * 64, 1, tight=False)
    with (
        pytest.raises(OutputError, match=rf"begun with another version of {package} \(.*now 0\)"),
        open_journal(tmp_path / "1.jsonl", after),
    ):
        pass


def test_somebody_elses_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    path.write_text("dear diary\n")
    with pytest.raises(OutputError, match=r"begun with another format .*delete this file"):
        write(path, SOME)
    assert path.read_text() == "dear diary\n"


def test_an_evaluation_is_gone_on_with_from_any_batch(
    run_cli: Cli, source: Path, own: Path, tmp_path: Path
) -> None:
    (own / "test" / "cat" / "bad.png").write_text("no image")
    model, folder = source / "samples" / "model.onnx", tmp_path / "kept"
    command = ["evaluate", model, own, "--batch", "4", "--json", "-q"]
    tables = [tmp_path / "a.csv", tmp_path / "b.csv"]
    undisturbed = run_cli(*command, "--csv", tables[0], "--resume", tmp_path / "other")[1]
    run_cli(*command, "--resume", folder)
    whole = (folder / "1.jsonl").read_bytes().splitlines(keepends=True)
    assert len(whole) == 22
    for kept in (0, 3, 9, 21):
        (folder / "1.jsonl").write_bytes(b"".join(whole[: kept + 1]) + b'{"class')
        output = run_cli(*command, "--csv", tables[1], "--resume", folder)[1]
        assert json.loads(output)["resumed"] == (kept if kept == 21 else kept // 4 * 4)
        assert numbers(output) == numbers(undisturbed)
        assert tables[1].read_bytes() == tables[0].read_bytes()
        assert (folder / "1.jsonl").read_bytes() == b"".join(whole)


def test_another_artifact_or_dataset_is_refused(
    run_cli: Cli, source: Path, small_engine: Path, own: Path, tmp_path: Path
) -> None:
    model, folder = source / "samples" / "model.onnx", tmp_path / "kept"
    resumed = ["--resume", folder, "-q"]
    assert run_cli("evaluate", model, own, *resumed)[0] == 0
    status, _, errors = run_cli("evaluate", small_engine, own, *resumed)
    assert (status, "begun with another artifact sha256" in errors) == (1, True)
    status, _, errors = run_cli("evaluate", model, own, *resumed, "--guarantee", "network")
    assert (status, "begun with another guarantee (program, now network)" in errors) == (1, True)
    picture = own / "test" / "cat" / "cat-0000.jpg"
    picture.write_bytes(picture.read_bytes() + b"\0")
    status, _, errors = run_cli("evaluate", model, own, *resumed)
    assert (status, "begun with another dataset sha256" in errors) == (1, True)
    assert "give --resume another folder, or delete this file" in errors


def test_moved_images_are_the_same_images(own: Path, tmp_path: Path) -> None:
    before = scan_folder(own, "test").sha256()
    own.rename(tmp_path / "moved")
    assert scan_folder(tmp_path / "moved", "test").sha256() == before
    (tmp_path / "moved" / "test" / "cat").rename(tmp_path / "moved" / "test" / "zebra")
    assert scan_folder(tmp_path / "moved", "test").sha256() != before


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_same_numbers(
    source: Path, own: Path, tmp_path: Path
) -> None:
    for folder in (own / "test").iterdir():
        for picture in list(folder.iterdir()):
            for copy in range(20):
                (folder / f"{picture.stem}-{copy}.jpg").write_bytes(picture.read_bytes())
    model, folder = source / "samples" / "model.onnx", tmp_path / "kept"
    command = [sys.executable, "-m", "lipdeploy", "evaluate", str(model), str(own)]
    command += ["--json", "--batch", "16", "--resume"]
    whole = subprocess.run([*command, str(tmp_path / "other")], capture_output=True, check=True)
    running = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL)
    lines, deadline = folder / "1.jsonl", time.monotonic() + 60
    while not lines.exists() or lines.read_bytes().count(b"\n") < 50:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    again = subprocess.run([*command, str(folder)], capture_output=True, check=True)
    assert 48 <= json.loads(again.stdout)["resumed"] < 420
    assert numbers(again.stdout.decode()) == numbers(whole.stdout.decode())


def test_arrays_keep_their_numbers_when_an_evaluation_goes_on(small_engine: Path) -> None:
    pictures = [np.full((8, 8, 3), shade, dtype=np.uint8) for shade in range(6)]
    with Predictor(small_engine, batch_size=2) as predictor:
        images = LabelledSources("made", predictor.manifest.classes, pictures, [0] * 6)
        whole, rest = (list(outcomes(predictor, images, start)) for start in (0, 4))
    assert [outcome.result.path for outcome in whole] == [f"#{index}" for index in range(6)]
    assert rest == whole[4:]


class Generated:
    """Random images that nobody holds: each is made when it is asked for."""

    def __init__(self, count: int, start: int = 0) -> None:
        self.count, self.start = count, start

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(self.start, self.count):
            generator = np.random.default_rng(index)
            yield generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_memory_is_a_few_numbers_an_image(small_engine: Path) -> None:
    """2,000 images of 12 kB each would be 24 MB; they leave less than 200 bytes each."""
    count = 2000
    with Predictor(small_engine, batch_size=16, compare=True) as predictor:
        classes = predictor.manifest.classes
        images = LabelledSources("made", classes, Generated(count), [0] * count)
        evaluation = Evaluation(predictor.statements, classes)
        stream = outcomes(predictor, images)
        for _ in range(200):
            evaluation.add(next(stream))
        tracemalloc.start()
        for outcome in stream:
            evaluation.add(outcome)
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert evaluation.images == count
    assert kept < 200 * count
    assert peak < 200 * count + 30 * 2**20
