"""Files of tensors: what is refused, whoever wrote it."""

import io
import shutil
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers import Silent, ignore, make_trainer, write_image_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdeploy.errors import ModelError
from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.data import load_folder
from lipdeploy.training.run_state import CHECKPOINT_FORMAT, RunState
from lipdeploy.training.tensor_file import read_tensors


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        small = load_folder(write_image_folder(folder / "tiny", 8), None, 1, ignore)
    run = make_trainer(small, folder / "run", epochs=1)
    run.run(Silent())
    return run.folder


@pytest.fixture
def saved(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(finished, tmp_path / "run")


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


def test_models_with_nan_or_missing_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    content = torch.load(saved / "model.pt", weights_only=True)
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


def test_two_directories_in_one_file_do_not_hide_records(saved: Path) -> None:
    """Readers look for the directory in different places; torch must get what was checked."""
    path = saved / "model.pt"
    good = path.read_bytes()
    hidden = io.BytesIO()
    with zipfile.ZipFile(hidden, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    # Python finds the directory from the end, wherever the offsets in it begin.
    path.write_bytes(hidden.getvalue() + good)
    assert load_model(path).card.epochs == 1


def test_two_records_of_one_name_are_refused(saved: Path) -> None:
    path = saved / "model.pt"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(ModelError, match="two records of one name"):
        load_model(path)


def test_compressed_records_are_refused(saved: Path) -> None:
    path = saved / "model.pt"
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
    changes: dict[str, object], saved: Path
) -> None:
    path = saved / "model.pt"
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
def test_cards_of_other_types_are_refused(changes: dict[str, object], saved: Path) -> None:
    path = saved / "model.pt"
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
def test_examples_that_are_no_images_are_refused(examples: torch.Tensor, saved: Path) -> None:
    path = saved / "model.pt"
    content = torch.load(path, weights_only=True) | {"examples": examples}
    torch.save(content, path)
    with pytest.raises(ModelError, match="damaged model file"):
        load_model(path)


def test_weights_without_elements_do_not_pass_for_a_wide_network(saved: Path) -> None:
    path = saved / "model.pt"
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
    change: dict[str, object] | None, saved: Path
) -> None:
    path = saved / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    if change is None:
        del content["scheduler"]
    torch.save(content | (change or {}), path)
    with pytest.raises(ModelError, match="damaged checkpoint"):
        RunState.of(read_tensors(path, CHECKPOINT_FORMAT))


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


def test_names_of_records_are_compared_as_torch_does(saved: Path) -> None:
    path = saved / "model.pt"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/DATA.PKL", b"")
    with pytest.raises(ModelError, match="two records of one name"):
        load_model(path)


@settings(max_examples=150)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_is_found_or_changes_nothing(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, where: float, bit: int
) -> None:
    checkpoint = (finished / "checkpoint.pt").read_bytes()
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
