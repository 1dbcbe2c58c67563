"""Checkpoints: what a run goes on from, and what survives."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import Silent, ignore, make_trainer

from lipdeploy import files
from lipdeploy.errors import ModelError, OutputError, TrainingError
from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.data import Dataset
from lipdeploy.training.loop import Trainer
from lipdeploy.training.run_folder import read_checkpoint
from lipdeploy.training.run_state import CHECKPOINT_FORMAT, RunState
from lipdeploy.training.tensor_file import read_tensors


def test_a_state_that_torch_cannot_load_is_refused(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=1)
    run.run(Silent())
    state = read_checkpoint(run.folder, ignore).state
    for broken in (replace(state, optimizer={}), replace(state, network={**state.network, "a": 1})):
        with pytest.raises(TrainingError, match="does not fit"):
            make_trainer(small, tmp_path / "again", epochs=1).resume(broken, seen=None)


def test_a_run_is_not_resumed_with_other_images(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=1)
    run.run(Silent())
    pixels = small.images.pixels.clone()
    pixels[0, 0, 0, 0] ^= 1
    other = replace(small, images=replace(small.images, pixels=pixels))
    with pytest.raises(TrainingError, match="other images"):
        resume_from(make_trainer(other, run.folder, epochs=1), run.folder)


def test_a_run_does_not_go_on_where_another_has_been_in_the_meantime(
    small: Dataset, tmp_path: Path
) -> None:
    first = make_trainer(small, tmp_path / "run", epochs=4)

    class Stop(Silent):
        def epoch(self, metrics: object) -> None:
            first.stop_after_epoch()

    first.run(Stop())
    slow, fast = (resumed(small, first.folder, epochs=4) for _ in range(2))
    fresh = make_trainer(small, first.folder, epochs=4)
    fast.run(Silent())
    table = (first.folder / "metrics.csv").read_bytes()
    for late in (slow, fresh):
        with pytest.raises(TrainingError, match="written by another process in the meantime"):
            late.run(Silent())
    assert load_model(first.model_path).card.epochs == 4
    assert (first.folder / "metrics.csv").read_bytes() == table


def test_two_processes_do_not_train_into_one_folder(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=1)
    run.folder.mkdir()
    with (
        files.only_writer(run.folder, "training into", "--out"),
        pytest.raises(OutputError, match="another process"),
    ):
        run.run(Silent())
    run.run(Silent())


def test_an_interrupt_while_saving_does_not_count_the_epoch(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=2)

    def interrupt(epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        Trainer.save(run, epoch)

    monkeypatch.setattr(run, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.run(Silent())
    assert (run.finished_epochs, run.is_finished) == (1, False)


@pytest.mark.parametrize("has_links", [True, False], ids=["hard links", "no hard links"])
def test_killed_between_any_two_file_operations_a_run_loses_at_most_one_epoch(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_links: bool
) -> None:
    """The folder is copied before every operation: each copy is what kill -9 would leave."""
    run = make_trainer(small, tmp_path / "run", epochs=3)
    snapshots: list[tuple[Path, int]] = []

    def snapshot() -> None:
        target = tmp_path / f"killed{len(snapshots)}"
        shutil.copytree(run.folder, target)
        snapshots.append((target, run.finished_epochs))

    watch(monkeypatch, snapshot, has_links=has_links)
    run.run(Silent())
    monkeypatch.undo()
    held = [(folder / "checkpoint.pt").exists() for folder, _ in snapshots]
    assert held == sorted(held), "the checkpoint was missing for a moment"
    assert sum(held) > 3 * 5
    for folder, epoch in snapshots[held.index(True) :]:
        resumed = read_checkpoint(folder, ignore)
        state = resumed.state
        assert resumed.is_last
        assert state.finished_epochs >= epoch
        if state.finished_epochs > 0:
            assert load_model(folder / "model.pt").card.epochs >= state.finished_epochs
    for folder, _ in snapshots[: held.index(True)]:
        assert not (folder / "model.pt").exists(), "a model that cannot be resumed"


def watch(patch: pytest.MonkeyPatch, before: Callable[[], None], *, has_links: bool) -> None:
    def watched(operation: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            before()
            return operation(*arguments, **options)

        return call

    for name in ("replace", "unlink"):
        patch.setattr(Path, name, watched(getattr(Path, name)))
    patch.setattr(os, "fsync", watched(os.fsync))
    patch.setattr(Path, "hardlink_to", watched(Path.hardlink_to) if has_links else refuse)


def refuse(*_: object) -> None:
    raise OSError("this file system has no hard links")


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=2)
    run.run(Silent())
    data = bytearray(run.checkpoint_path.read_bytes())
    data[len(data) // 2] ^= 1
    run.checkpoint_path.write_bytes(data)
    notes: list[str] = []
    found = read_checkpoint(run.folder, notes.append)
    assert (found.state.finished_epochs, found.is_last) == (1, False)
    assert "Bad CRC-32" in notes[0]
    assert f"going on from {run.previous_path}, epoch 1" in notes[0]
    again = make_trainer(small, run.folder, epochs=2)
    again.resume(found.state, seen=found.seen, is_last=found.is_last)
    again.save(2)
    assert read_checkpoint(run.folder, ignore).state.finished_epochs == 2
    kept = RunState.of(read_tensors(run.previous_path, CHECKPOINT_FORMAT))
    assert kept.finished_epochs == 1, "the damaged file took the place of the good one"
    run.checkpoint_path.unlink()
    assert read_checkpoint(run.folder, notes.append).state.finished_epochs == 1
    for path in (run.checkpoint_path, run.previous_path):
        path.write_bytes(b"")
    with pytest.raises(ModelError, match="not a lipdeploy-checkpoint file"):
        read_checkpoint(run.folder, notes.append)


@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), MemoryError()], ids=str)
def test_a_checkpoint_that_cannot_be_read_now_is_not_given_up(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=2)
    run.run(Silent())

    def fail(path: Path) -> bytes:
        raise failure

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises((ModelError, MemoryError)):
        read_checkpoint(run.folder, ignore)


def test_a_checkpoint_of_a_newer_version_is_not_given_up(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=2)
    run.run(Silent())
    content = torch.load(run.checkpoint_path, weights_only=True) | {"format_version": 99}
    torch.save(content, run.checkpoint_path)
    with pytest.raises(ModelError, match="format version 99"):
        read_checkpoint(run.folder, ignore)


@pytest.mark.parametrize("number", [28, 122], ids=["no space left", "quota exceeded"])
def test_a_full_disk_keeps_the_checkpoint_that_is_there(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=2)
    run.folder.mkdir()
    run.save(1)
    kept = {path.name: path.read_bytes() for path in run.folder.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match=f"{os.strerror(number)}.*make room"):
        run.save(2)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == kept


def test_weights_that_are_not_finite_never_reach_a_checkpoint(
    small: Dataset, tmp_path: Path
) -> None:
    run = make_trainer(small, tmp_path / "run")

    class Poison(Silent):
        def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
            if (epoch, step) == (2, steps):
                with torch.no_grad():
                    next(run.network.head.parameters()).fill_(torch.nan)

    with pytest.raises(TrainingError, match=r"not finite in epoch 2.*holds epoch 1.*--resume --lr"):
        run.run(Poison())
    assert read_checkpoint(run.folder, ignore).state.finished_epochs == 1
    assert load_model(run.model_path).card.epochs == 1


def resumed(small: Dataset, folder: Path, **options: object) -> Trainer:
    run = make_trainer(small, folder, **options)
    resume_from(run, folder)
    return run


def resume_from(run: Trainer, folder: Path) -> None:
    found = read_checkpoint(folder, ignore)
    run.resume(found.state, seen=found.seen, is_last=found.is_last)


def test_a_resumed_run_can_take_another_learning_rate(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=3)

    class Stop(Silent):
        def epoch(self, metrics: object) -> None:
            run.stop_after_epoch()

    run.run(Stop())
    assert run.finished_epochs == 1
    rates = []
    for factor in (1.0, 0.25):
        folder = tmp_path / f"again{factor}"
        shutil.copytree(run.folder, folder)
        again = resumed(small, folder, epochs=3, learning_rate=0.05 * factor)
        before = again.learner.learning_rate
        again.run(Silent())
        last = resumed(small, folder, epochs=3, learning_rate=0.05 * factor)
        rates.append((again.learner.learning_rate, last.learner.learning_rate))
        assert before > 0
    assert rates[1][0] == pytest.approx(0.25 * rates[0][0])
    assert rates[1][1] == rates[1][0]
