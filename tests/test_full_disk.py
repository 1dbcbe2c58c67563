"""Disks that fill up, with the kernel's own limit on the size of a file."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import assert_one_line, ignore

from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.run_folder import read_checkpoint

Cli = Callable[..., tuple[int, str, str]]


# Not preexec_fn: what it runs between fork and exec can wait for ever for a lock of another thread.
WITH_SMALL_FILES = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("lipdeploy", run_name="__main__")
"""


def run_with_small_files(limit: int, *arguments: str | Path) -> tuple[int, str, str]:
    finished = subprocess.run(
        [sys.executable, "-c", WITH_SMALL_FILES, str(limit), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return finished.returncode, finished.stdout, finished.stderr


def test_a_disk_that_fills_up_while_exporting_keeps_the_old_engine(
    workshop: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"the old one")
    arguments = ["export", workshop / "model.pt", "-o", tmp_path / "model.onnx"]
    status, _, errors = run_with_small_files(4096, *arguments)
    message = errors.splitlines()[-1]
    assert status == 1
    assert f"model.onnx: cannot be written ({os.strerror(errno.EFBIG)}); make room" in message
    assert "Traceback" not in errors
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx"}
    assert (tmp_path / "model.onnx").read_bytes() == b"the old one"


@pytest.mark.usefixtures("cache")
def test_a_disk_that_is_full_when_training_begins_is_told_at_once(
    image_folder: Path, tmp_path: Path
) -> None:
    train = ["train", image_folder, "--out", tmp_path / "run", "--workers", "1", "--width", "4"]
    status, _, errors = run_with_small_files(20_000, *train)
    assert (status, "cannot be written" in errors) == (1, True)
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.usefixtures("cache")
def test_a_disk_that_fills_up_while_training_keeps_the_last_checkpoint(
    run_cli: Cli, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls, flush = tmp_path / "run", iter(range(1000)), os.fsync

    def full(descriptor: int) -> None:
        if next(calls) > 8:  # two files and their folder, at the start and after each epoch
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    train = ["train", image_folder, "--out", out, "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, _, errors = run_cli(*train, "--width", "4", "--epochs", "4", "--batch", "6")
    message = errors.splitlines()[-1] + "\n"
    assert_one_line(
        status, "", message, 1, "cannot be written .No space left on device.; make room"
    )
    held = read_checkpoint(out, ignore).state.finished_epochs
    assert 0 < held < 4
    assert run_cli(*train, "--resume")[0] == 0
    assert load_model(out / "model.pt").card.epochs == 4
