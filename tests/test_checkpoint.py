"""Model files and checkpoints: what is refused, and what survives."""

import io
import os
import shutil
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import Silent, ignore, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdeploy import files
from lipdeploy.errors import ModelError, OutputError, TrainingError
from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.data import Dataset
from lipdeploy.training.loop import Trainer
from lipdeploy.training.run_folder import read_checkpoint
from lipdeploy.training.run_state import CHECKPOINT_FORMAT, RunState
from lipdeploy.training.tensor_file import read_tensors


def test_model_files_with_code_or_of_others_are_refused(tmp_path: Path) -> None:
    import pickle

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("this must never run",))

    torch.save({"format": "lipdeploy-model", "card": Hostile()}, tmp_path / "code.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Hostile()))
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_bytes(b"hello")
    for name in ("code.pt", "pickle.pt", "empty.pt", "text.pt"):
        with pytest.raises(ModelError, match="not a lipdeploy-model file"):
            load_model(tmp_path / name)
    with pytest.raises(ModelError, match=r"a pickle that names .* print"):
        load_model(tmp_path / "code.pt")
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
    run.save(1)
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
        {"a": [{"b": (torch.zeros(1).expand(10**9),)}]},
    ],
    ids=["strides of zero", "nested"],
)
def test_tensors_larger_than_their_file_are_refused(
    content: dict[str, object], tmp_path: Path
) -> None:
    torch.save({"format": CHECKPOINT_FORMAT, "format_version": 1, **content}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"larger than the file|more values"):
        read_tensors(tmp_path / "a.pt", CHECKPOINT_FORMAT)


@pytest.mark.parametrize(
    "content",
    [
        {"a": bytearray(10)},
        {"a": torch.zeros(1, device="meta")},
        {"a": torch.sparse_coo_tensor([[0], [0]], [1.0], (10, 10), check_invariants=False)},
        {"a": torch.nn.Parameter(torch.zeros(1))},
    ],
    ids=["bytearray", "meta", "sparse", "parameter"],
)
def test_pickles_may_name_tensors_only(content: dict[str, object], tmp_path: Path) -> None:
    """torch's unpickler would make a bytearray of any length that a file of 50 bytes asks for."""
    torch.save({"format": CHECKPOINT_FORMAT, "format_version": 1, **content}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="a pickle that names"):
        read_tensors(tmp_path / "a.pt", CHECKPOINT_FORMAT)


def test_two_directories_in_one_file_do_not_hide_records(small: Dataset, tmp_path: Path) -> None:
    """Readers look for the directory in different places; torch must get what was checked."""
    path = saved(small, tmp_path)
    good = path.read_bytes()
    hidden = io.BytesIO()
    with zipfile.ZipFile(hidden, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    # Python finds the directory from the end, wherever the offsets in it begin.
    path.write_bytes(hidden.getvalue() + good)
    assert load_model(path).card.epochs == 1


def test_two_records_of_one_name_are_refused(small: Dataset, tmp_path: Path) -> None:
    path = saved(small, tmp_path)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(ModelError, match="two records of one name"):
        load_model(path)


def test_compressed_records_are_refused(small: Dataset, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "changes",
    [
        {"command": [["a"]]},
        {"command": torch.zeros(2)},
        {"epochs": "many"},
        {"versions": {"a": [1]}},
        {"classes": ["dark", "dark"]},
        {"classes": ["dark", "bright\nError: fake"]},
        {"classes": ["dark", ""]},
        {"classes": ["dark", 3]},
        {"extra": 1},
    ],
    ids=str,
)
def test_cards_of_other_types_are_refused(
    changes: dict[str, object], small: Dataset, tmp_path: Path
) -> None:
    path = saved(small, tmp_path)
    content = torch.load(path, weights_only=True)
    content["card"] |= changes
    torch.save(content, path)
    with pytest.raises(ModelError, match="damaged model file"):
        load_model(path)


@pytest.mark.parametrize(
    "examples",
    [torch.zeros(1), torch.full((1, 3, 8, 8), torch.nan)],
    ids=["shape", "nan"],
)
def test_examples_that_are_no_images_are_refused(
    examples: torch.Tensor, small: Dataset, tmp_path: Path
) -> None:
    path = saved(small, tmp_path)
    content = torch.load(path, weights_only=True) | {"examples": examples}
    torch.save(content, path)
    with pytest.raises(ModelError, match="damaged model file"):
        load_model(path)


def test_weights_without_elements_do_not_pass_for_a_wide_network(
    small: Dataset, tmp_path: Path
) -> None:
    path = saved(small, tmp_path)
    content = torch.load(path, weights_only=True)
    content["architecture"] |= {"width": 4000}
    for name in content["state"]:
        if name.endswith(".centre"):
            content["state"][name] = torch.zeros(4000 * 3999 // 2, 0)
    torch.save(content, path)
    with pytest.raises(ModelError, match="do not fit the architecture"):
        load_model(path)


@pytest.mark.parametrize(
    "change",
    [
        {"finished_epochs": -1},
        {"finished_epochs": "two"},
        {"options": {"epochs": 3, "unknown": 1}},
        {"options": {"shift": 10**9}},
        {"classes": [1]},
        {"optimizer": []},
        {"architecture": {"image_size": 8, "classes": 2, "width": 4000}},
        None,
    ],
    ids=str,
)
def test_checkpoints_with_other_values_are_refused(
    change: dict[str, object] | None, small: Dataset, tmp_path: Path
) -> None:
    path = saved(small, tmp_path, "checkpoint.pt")
    content = torch.load(path, weights_only=True)
    if change is None:
        del content["scheduler"]
    torch.save(content | (change or {}), path)
    with pytest.raises(ModelError, match="damaged checkpoint"):
        RunState.of(read_tensors(path, CHECKPOINT_FORMAT))


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


@pytest.mark.parametrize(
    "content",
    [
        {"format_version": torch.zeros(3)},
        {"format_version": 10**5000},
        {"format_version": [1]},
        {"format": ["lipdeploy-checkpoint"]},
        {"format": "x" * 10**6},
        {"a": OrderedDict},
        {(1, 2): 3},
    ],
    ids=["tensor", "large", "list", "list as format", "long", "class", "key"],
)
def test_headers_and_keys_of_other_types_are_refused(
    content: dict[object, object], tmp_path: Path
) -> None:
    header = {"format": CHECKPOINT_FORMAT, "format_version": 1}
    torch.save(header | content, tmp_path / "a.pt")
    with pytest.raises(ModelError) as refused:
        read_tensors(tmp_path / "a.pt", CHECKPOINT_FORMAT)
    assert len(str(refused.value)) < 1000


def test_what_is_named_many_times_counts_many_times(tmp_path: Path) -> None:
    nest: list[object] = []
    for _ in range(15):
        nest = [nest, nest, nest]
    weight = torch.zeros(1000)
    for content in ({"a": nest}, {"a": [weight[:] for _ in range(100)]}):
        torch.save({"format": CHECKPOINT_FORMAT, "format_version": 1, **content}, tmp_path / "a.pt")
        with pytest.raises(ModelError, match=r"larger than the file|more values"):
            read_tensors(tmp_path / "a.pt", CHECKPOINT_FORMAT)


def test_attributes_of_a_dictionary_hide_nothing(tmp_path: Path) -> None:
    hiding = OrderedDict(a=torch.zeros(1).expand(10**9))
    hiding.values = OrderedDict
    content = {"format": CHECKPOINT_FORMAT, "format_version": 1, "b": hiding}
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="larger than the file"):
        read_tensors(tmp_path / "a.pt", CHECKPOINT_FORMAT)


def test_names_of_records_are_compared_as_torch_does(small: Dataset, tmp_path: Path) -> None:
    path = saved(small, tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/DATA.PKL", b"")
    with pytest.raises(ModelError, match="two records of one name"):
        load_model(path)


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
    expected = read_tensors(path, CHECKPOINT_FORMAT).content
    path.write_bytes(damaged)
    try:
        found = read_tensors(path, CHECKPOINT_FORMAT).content
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
