"""Model files and checkpoints: what is refused, and what survives."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Silent, ignore, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdeploy import files
from lipdeploy.errors import ModelError, OutputError, TrainingError
from lipdeploy.training.checkpoint import load_model, read_tensors
from lipdeploy.training.data import Dataset
from lipdeploy.training.loop import CHECKPOINT_FORMAT, Trainer
from lipdeploy.training.session import read_checkpoint


def test_model_files_with_code_or_of_others_are_refused(tmp_path: Path) -> None:
    import pickle

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("this must never run",))

    cases = {"code.pt": pickle.dumps(Hostile()), "empty.pt": b"", "text.pt": b"hello"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match="not a lipdeploy-model file"):
            load_model(tmp_path / name)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign.pt")
    with pytest.raises(ModelError, match="a foreign file"):
        load_model(tmp_path / "foreign.pt")
    torch.save({"format": "lipdeploy-model", "format_version": 99}, tmp_path / "newer.pt")
    with pytest.raises(ModelError, match="format version 99"):
        load_model(tmp_path / "newer.pt")
    with pytest.raises(ModelError, match="no such file"):
        load_model(tmp_path / "none.pt")


def test_models_with_nan_or_missing_weights_are_refused(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=1)
    run.folder.mkdir()
    run.save()
    content = torch.load(run.model_path, weights_only=True)
    content["state"]["head.linear.bias"][0] = torch.nan
    torch.save(content, tmp_path / "nan.pt")
    with pytest.raises(ModelError, match="NaN or infinite"):
        load_model(tmp_path / "nan.pt")
    del content["state"]["head.linear.bias"]
    torch.save(content, tmp_path / "less.pt")
    with pytest.raises(ModelError, match="damaged model file"):
        load_model(tmp_path / "less.pt")


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.zeros(1).expand(10**9)},
        {"a": torch.zeros(1, device="meta").expand(10**9)},
        {"a": [{"b": (torch.zeros(1).expand(10**9),)}]},
        {"a": torch.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**6), check_invariants=False)},
    ],
    ids=["strides of zero", "meta", "nested", "sparse"],
)
def test_tensors_larger_than_their_file_are_refused(
    content: dict[str, object], tmp_path: Path
) -> None:
    torch.save({"format": CHECKPOINT_FORMAT, "format_version": 1, **content}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="larger than the file"):
        read_tensors(tmp_path / "a.pt", CHECKPOINT_FORMAT)


def test_compressed_records_are_refused(small: Dataset, tmp_path: Path) -> None:
    import zipfile

    path = saved(small, tmp_path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    with pytest.raises(ModelError, match="compressed records"):
        load_model(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 10**9},
        {"width": 4.0},
        {"depth": 10**30},
        {"image_size": 10**9},
        {"image_size": float("inf")},
        {"classes": 10**12},
        {"head": "mlp"},
        {"head": "none"},
    ],
    ids=str,
)
def test_architectures_that_the_weights_do_not_have_are_never_built(
    changes: dict[str, object], small: Dataset, tmp_path: Path
) -> None:
    path = saved(small, tmp_path)
    content = torch.load(path, weights_only=True)
    content["architecture"] |= changes
    torch.save(content, path)
    with pytest.raises(ModelError, match="damaged model file"):
        load_model(path)


def saved(small: Dataset, tmp_path: Path, name: str = "model.pt") -> Path:
    run = make_trainer(small, tmp_path / "run", epochs=1)
    run.run(Silent())
    return tmp_path / "run" / name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from helpers import write_image_folder

    from lipdeploy.training.data import load_folder

    folder = tmp_path_factory.mktemp("checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        small = load_folder(write_image_folder(folder / "tiny", 8), None, 1, ignore)
    return saved(small, folder, "checkpoint.pt").read_bytes()


@settings(max_examples=150)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_is_found_or_changes_nothing(
    checkpoint: bytes, tmp_path_factory: pytest.TempPathFactory, where: float, bit: int
) -> None:
    damaged = bytearray(checkpoint)
    damaged[int(where * len(damaged))] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    path.write_bytes(checkpoint)
    expected = read_tensors(path, CHECKPOINT_FORMAT)
    path.write_bytes(damaged)
    try:
        found = read_tensors(path, CHECKPOINT_FORMAT)
    except ModelError:
        return
    assert_same(found, expected)


def assert_same(a: object, b: object) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key, value in a.items():
            assert_same(value, b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


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
    states = [(folder, epoch) for folder, epoch in snapshots if (folder / "checkpoint.pt").exists()]
    assert len(states) > 3 * 5
    if has_links:
        first = snapshots.index(states[0])
        assert states == snapshots[first:]
    for folder, epoch in snapshots[snapshots.index(states[0]) :]:
        assert read_checkpoint(folder, ignore)["finished_epochs"] >= epoch - 1
        assert load_model(folder / "model.pt").card.epochs >= epoch - 1


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
    state = read_checkpoint(run.folder, notes.append)
    assert state["finished_epochs"] == 1
    assert "checksum" in notes[0]
    assert "Going on from" in notes[0]
    for path in (run.checkpoint_path, run.previous_path):
        assert read_tensors(path, CHECKPOINT_FORMAT)["finished_epochs"] == 1
    run.checkpoint_path.unlink()
    assert read_checkpoint(run.folder, notes.append)["finished_epochs"] == 1
    for path in (run.checkpoint_path, run.previous_path):
        path.write_bytes(b"")
    with pytest.raises(ModelError, match="not a lipdeploy-checkpoint file"):
        read_checkpoint(run.folder, notes.append)


@pytest.mark.parametrize("number", [28, 122], ids=["no space left", "quota exceeded"])
def test_a_full_disk_keeps_the_checkpoint_that_is_there(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=2)
    run.folder.mkdir()
    run.save()
    kept = {path.name: path.read_bytes() for path in run.folder.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match=f"{os.strerror(number)}.*make room"):
        run.save()
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
    assert read_checkpoint(run.folder, ignore)["finished_epochs"] == 1
    assert load_model(run.model_path).card.epochs == 1


def resumed(small: Dataset, folder: Path, **options: object) -> Trainer:
    run = make_trainer(small, folder, **options)
    run.resume(read_checkpoint(folder, ignore))
    return run


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
        before = again.scheduler.get_last_lr()[0]
        again.run(Silent())
        last = resumed(small, folder, epochs=3, learning_rate=0.05 * factor)
        rates.append((again.optimizer.param_groups[0]["lr"], last.optimizer.param_groups[0]["lr"]))
        assert before > 0
    assert rates[1][0] == pytest.approx(0.25 * rates[0][0])
    assert rates[1][1] == rates[1][0]
