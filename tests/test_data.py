"""Datasets: folders, CIFAR, the cache, the split, augmentation."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import ignore, write_image_folder

from lipdeploy.choices import check_class_names
from lipdeploy.datasets import LabelledSources, check_same_classes, scan_folder
from lipdeploy.errors import DatasetError
from lipdeploy.training import data
from lipdeploy.training.data import LabelledImages, load_folder
from lipdeploy.training.sampling import (
    Moves,
    Share,
    augment,
    channel_mean,
    epoch_parts,
    split_validation,
)

pytestmark = pytest.mark.usefixtures("cache")


def test_decoding_is_cached_until_a_file_changes(
    image_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_folder(image_folder, None, 1, ignore)
    assert len(list(cache.rglob("*.npy"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(data, "decode_files", None)
        again = load_folder(image_folder, None, 1, ignore)
    assert torch.equal(first.images.pixels, again.images.pixels)
    assert first.images.pixels.stride() == again.images.pixels.stride()
    changed = next((image_folder / "train" / "dark").iterdir())
    changed.write_bytes((image_folder / "train" / "bright" / changed.name).read_bytes())
    assert not torch.equal(
        load_folder(image_folder, None, 1, ignore).images.pixels, first.images.pixels
    )


def test_large_photographs_are_reduced_unless_a_size_is_asked_for(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path / "photos", side=90, count=2)
    assert load_folder(root, None, 1, ignore).images.pixels.shape[-1] == 64
    assert load_folder(root, 80, 1, ignore).images.pixels.shape[-1] == 80


def test_other_sizes_are_resized_as_in_prediction(image_folder: Path) -> None:
    from lipdeploy.images import network_input

    loaded = load_folder(image_folder, 6, 1, ignore).images
    path = min((image_folder / "train" / "bright").iterdir())
    assert loaded.pixels.dtype == torch.float16
    expected = torch.from_numpy(network_input(path, 6).pixels)
    torch.testing.assert_close(loaded.pixels[0].float(), expected, rtol=1e-3, atol=0)


def test_the_validation_split_takes_its_share_of_every_class() -> None:
    labels = torch.tensor([0] * 10 + [1] * 30 + [2])
    images = LabelledImages(torch.arange(41).view(41, 1, 1, 1), labels)
    training, held = split_validation(images, 0.2, seed=0)
    assert [(held.labels == k).sum().item() for k in range(3)] == [2, 6, 0]
    seen = torch.cat([training.pixels, held.pixels]).flatten().sort().values
    assert torch.equal(seen, torch.arange(41))
    assert len(split_validation(images, 0.0, seed=0)[1]) == 0


def test_augmentation_shifts_fills_and_flips() -> None:
    pixels = torch.arange(1.0, 5).view(1, 1, 2, 2).expand(400, 3, 2, 2)
    mean = torch.tensor([-1.0, -2.0, -3.0])
    moved = augment(pixels, mean, Moves.draw(400, 1, torch.Generator().manual_seed(0)))
    assert moved.shape == pixels.shape
    for channel in range(3):
        values = set(moved[:, channel].unique().tolist())
        assert values == {1.0, 2.0, 3.0, 4.0, float(mean[channel])}
    distinct = {tuple(image[0].flatten().tolist()) for image in moved}
    assert {(1, 2, 3, 4), (2, 1, 4, 3), (-1, -1, -1, 1)} <= distinct
    kept = augment(pixels, mean, Moves.draw(400, 0, torch.Generator().manual_seed(0)))
    assert {tuple(i[0].flatten().tolist()) for i in kept} == {(1, 2, 3, 4), (2, 1, 4, 3)}


def test_an_epoch_covers_the_images_once_in_an_order_of_its_own() -> None:
    parts = epoch_parts(11, Share(5, 1), 4, torch.Generator().manual_seed(0))
    order = torch.cat([part.indices for part in parts])
    assert len(order.unique()) == len(order) == 10
    assert not torch.equal(order, torch.arange(10))


def test_the_mean_is_that_of_each_channel(small: data.Dataset) -> None:
    torch.testing.assert_close(
        channel_mean(small.images), small.images.pixels.float().mean(dim=(0, 2, 3))
    )


def test_folders_of_another_layout_are_refused(tmp_path: Path, image_folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected folders train/<class>/\*"):
        load_folder(tmp_path / "none", None, 1, ignore)
    (image_folder / "train" / "grey").mkdir()
    with pytest.raises(DatasetError, match="a class without images"):
        load_folder(image_folder, None, 1, ignore)
    (image_folder / "train" / "grey" / "a.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"a\.png: not a readable image"):
        load_folder(image_folder, None, 1, ignore)


def test_cifar_without_a_fitting_torchvision_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DatasetError, match=r"lipdeploy\[cifar\]"):
        data.load_cifar("cifar10", tmp_path)


class FakeCifar:
    """What torchvision's CIFAR datasets look like, without a download."""

    def __init__(self, root: str, *, train: bool, download: bool) -> None:
        assert download
        assert root == "data"
        self.data = np.arange(5 * 32 * 32 * 3, dtype=np.uint8).reshape(5, 32, 32, 3)
        self.targets = [0, 1, 0, 1, 0]
        self.classes = ["cat", "dog"]


def install_fake_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torchvision.datasets")
    module.CIFAR10 = module.CIFAR100 = FakeCifar
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


def test_cifar_becomes_channels_first(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_cifar(monkeypatch)
    loaded = data.load_cifar("cifar10", Path("data"))
    assert loaded.images.pixels.shape == (5, 3, 32, 32)
    assert loaded.images.pixels[0, 1, 0, 0] == 1
    assert loaded.classes == ("cat", "dog")


def test_the_test_part_of_cifar_keeps_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_cifar(monkeypatch)
    images = data.cifar_test_images("cifar10", Path("data"))
    assert images.classes == ("cat", "dog")
    assert images.sources[0].shape == (32, 32, 3)
    assert list(images.labels) == [0, 1, 0, 1, 0]


def test_a_download_that_fails_says_where_to_put_the_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(self: object, root: str, **options: object) -> None:
        raise OSError("no route to host")

    install_fake_cifar(monkeypatch)
    monkeypatch.setattr(FakeCifar, "__init__", fail)
    with pytest.raises(DatasetError, match=r"no route to host.*--data"):
        data.load_cifar("cifar10", tmp_path)


def test_a_limit_takes_images_evenly() -> None:
    images = LabelledSources("d", ("a", "b"), list(range(100)), [0] * 60 + [1] * 40)
    few = images.spread(10)
    assert few.sources == list(range(0, 100, 10))
    assert few.labels == [0] * 6 + [1] * 4
    assert images.spread(100) is images
    assert len(images.spread(7)) == 7


def test_labels_follow_the_model() -> None:
    images = LabelledSources("d", ("a", "b", "c"), [1, 2, 3], [0, 1, 2])
    ordered = images.in_order_of(("c", "a", "b"))
    assert [ordered.classes[label] for label in ordered.labels] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (["cat", "dgo"], ["cat", "dog"], "has no class 'dgo'; did you mean dog"),
        (["cat", "house"], ["cat", "dog"], "has no class 'house'; it knows cat, dog"),
        (["cat"], ["cat", "dog"], "no images of dog"),
        ([], [f"c{i:02d}" for i in range(12)], "c09 and 2 more"),
    ],
)
def test_classes_that_differ_are_refused(
    found: list[str], expected: list[str], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        check_same_classes("test", found, expected, "the model")


def test_a_damaged_cache_is_made_again(image_folder: Path, cache: Path) -> None:
    first = load_folder(image_folder, None, 1, ignore)
    (path,) = cache.rglob("*.npy")
    for damage in (b"", path.read_bytes()[:100], b"nonsense"):
        path.write_bytes(damage)
        again = load_folder(image_folder, None, 1, ignore)
        assert torch.equal(first.images.pixels, again.images.pixels)


def test_folders_are_listed_without_torch(image_folder: Path) -> None:
    folder = scan_folder(image_folder, "test")
    assert folder.classes == ("bright", "dark")
    assert len(folder) == 24


def test_several_processes_decode_the_same(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = scan_folder(image_folder, "train").sources
    monkeypatch.setattr(data, "CHUNK", 7)
    seen: list[int] = []
    together = data.decode_files(files, 8, 2, lambda done, total: seen.append(done))
    assert seen == [7, 14, 21, 24]
    assert np.array_equal(together, data.decode_files(files, 8, 1, ignore))


def test_names_of_classes_may_be_in_any_script() -> None:
    check_class_names(
        ["cat", "great dane", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "猫"]
    )
    for name in ("", "a\nb", "a\x1b[2J", "a\u202eb", "a\u2028b", 3):
        with pytest.raises(ValueError, match="is no name of a class"):
            check_class_names([name])
    check_class_names(["猫" * 1000])
    with pytest.raises(ValueError, match=r"'a{40}'... .*: 10,000,000 characters, limit 1,0"):
        check_class_names(["a" * 10_000_000])
    with pytest.raises(ValueError, match="two classes of one name"):
        check_class_names(["cat", "cat"])
