"""Training end to end on a small folder, and what it leaves behind."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import write_image_folder

from lipdeploy.errors import DatasetError, ModelError, TrainingError, UsageError
from lipdeploy.training import data, loop
from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.data import (
    LabelledImages,
    augment,
    batches,
    channel_mean,
    load_folder,
    split_validation,
)
from lipdeploy.training.lipconvnet import Architecture
from lipdeploy.training.loop import EpochMetrics, Trainer, TrainingOptions
from lipdeploy.training.session import TrainingRequest, prepare

Cli = Callable[..., tuple[int, str, str]]


class Silent:
    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None: ...

    def epoch(self, metrics: EpochMetrics) -> None: ...


def ignore(done: int, total: int) -> None: ...


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(image_folder: Path) -> data.Dataset:
    return load_folder(image_folder, None, 1, ignore)


def trainer(small: data.Dataset, folder: Path, head: str = "lln", **options: object) -> Trainer:
    architecture = Architecture(8, 2, width=4, head=head)
    defaults = {"epochs": 4, "batch_size": 6, "validation": 0.2, "learning_rate": 0.05}
    chosen = TrainingOptions(**(defaults | options))
    return Trainer(small, architecture, chosen, folder, "lipdeploy train tiny")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "lln", "mlp"])
@pytest.mark.parametrize("padding", ["circular", "zero"])
def test_train_export_and_predict_work_on_an_image_folder(
    run_cli: Cli, image_folder: Path, tmp_path: Path, head: str, padding: str
) -> None:
    out = tmp_path / "run"
    settings = ["--width", "4", "--epochs", "4", "--batch", "6", "--lr", "0.05", "--workers", "1"]
    kind = ["--head", head, "--padding", padding, "--curvature", "0.01"]
    status, output, errors = run_cli("train", image_folder, "--out", out, *settings, *kind)
    assert (status, errors) == (0, "")
    assert f"lipdeploy export {out / 'model.pt'}" in output
    status, output, _ = run_cli("export", out / "model.pt")
    assert status == 0
    assert "0 argmax flips" in output
    status, output, _ = run_cli(
        "predict", image_folder / "test", "--certify", "--json", "--model", out / "model.onnx"
    )
    rows = [json.loads(line) for line in output.splitlines()]
    right = [row for row in rows if row["label"] == Path(row["path"]).parent.name]
    assert status == 0
    assert len(right) >= 22
    assert all(row["radius"] > 0 for row in rows)


def test_the_model_file_holds_tensors_and_plain_values_only(
    small: data.Dataset, tmp_path: Path
) -> None:
    run = trainer(small, tmp_path / "run", epochs=1)
    run.run(Silent())
    content = torch.load(run.model_path, weights_only=True)
    assert content["card"]["classes"] == ["bright", "dark"]
    assert content["card"]["command"] == "lipdeploy train tiny"
    assert content["architecture"]["image_size"] == 8
    assert content["preprocessing"]["crop"] == "centre"
    assert set(content["card"]["versions"]) == {"lipdeploy", "torch"}
    state, channels = content["state"], 16
    assert state["body.3.kernel.taps"].shape == (4, channels, channels)
    assert state["body.3.kernel.centre"].shape == (channels * (channels - 1) // 2,)
    assert content["examples"].untyped_storage().nbytes() == content["examples"].numel()


def test_a_model_read_back_is_the_trained_network(small: data.Dataset, tmp_path: Path) -> None:
    run = trainer(small, tmp_path / "run", epochs=1)
    run.run(Silent())
    again = load_model(run.model_path)
    run.network.eval()
    pixels = small.images.pixels[:4].float()
    assert torch.equal(again.network(pixels), run.network(pixels))


def weights(run: Trainer) -> list[torch.Tensor]:
    return [value.clone() for value in run.network.state_dict().values()]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_is_the_undisturbed_run_bit_for_bit(
    small: data.Dataset, tmp_path: Path, precision: str
) -> None:
    whole = trainer(small, tmp_path / "whole", precision=precision)
    whole.run(Silent())

    class Interrupt(Silent):
        def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
            if (epoch, step) == (3, 2):
                raise KeyboardInterrupt

    broken = trainer(small, tmp_path / "broken", precision=precision)
    with pytest.raises(KeyboardInterrupt):
        broken.run(Interrupt())
    resumed = trainer(small, tmp_path / "broken", precision=precision)
    with (tmp_path / "broken" / "metrics.csv").open("a") as stream:
        stream.write("3,killed,between,metrics,and,checkpoint,0\r\n")
    resumed.resume(torch.load(resumed.checkpoint_path, weights_only=True))
    assert resumed.finished_epochs == 2
    resumed.run(Silent())
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    with (tmp_path / "broken" / "metrics.csv").open() as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["1", "2", "3", "4"]


def test_small_sets_get_small_batches_and_training_that_fails_says_so(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    settings = ["--width", "4", "--epochs", "1", "--workers", "1", "--lr", "1e-9"]
    status, _, errors = run_cli("train", image_folder, "--out", tmp_path / "run", *settings)
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (status, content["options"]["batch_size"]) == (0, None)
    assert content["scheduler"]["total_steps"] >= 8 + 1
    assert "hardly learned" in errors


def test_defaults_do_not_diverge_on_a_handful_of_images(tmp_path: Path) -> None:
    """Without a limit on the gradient the loss of this run goes beyond 1,000."""
    labels = torch.arange(36) % 3
    levels = torch.tensor([90.0, 160.0, 120.0])[labels].view(36, 1, 1, 1)
    noise = torch.randn(36, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = LabelledImages((levels + 15 * noise).clamp(0, 255).to(torch.uint8), labels)
    architecture = Architecture(64, 3, width=8)
    run = Trainer(
        data.Dataset("noise", ("a", "b", "c"), images),
        architecture,
        TrainingOptions(epochs=4),
        tmp_path / "run",
        "",
    )
    run.run(Silent())
    with (tmp_path / "run" / "metrics.csv").open() as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert max(losses) < 100


def test_the_seed_decides_everything(small: data.Dataset, tmp_path: Path) -> None:
    runs = [
        trainer(small, tmp_path / name, epochs=1, seed=s)
        for name, s in zip("abc", (1, 1, 2), strict=True)
    ]
    for run in runs:
        run.run(Silent())
    first, same, other = (weights(run) for run in runs)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_control_c_leaves_a_usable_model_and_says_how_to_go_on(
    run_cli: Cli, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    settings = ["--width", "4", "--epochs", "3", "--batch", "6", "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_loss", interrupt)
        status, output, _ = run_cli("train", image_folder, "--out", out, *settings)
    assert status == 130
    assert f"--out {out} --resume" in output
    assert "has learned nothing yet" in output
    assert load_model(out / "model.pt").card.epochs == 0
    status, output, _ = run_cli("train", image_folder, "--out", out, "--resume", "--workers", "1")
    assert status == 0
    assert load_model(out / "model.pt").card.epochs == 3


def test_resume_refuses_what_does_not_fit(run_cli: Cli, image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, _, errors = run_cli("train", image_folder, "--resume")
    assert (status, "--out DIR" in errors) == (2, True)
    status, _, errors = run_cli("train", image_folder, "--out", out, "--resume", "--epochs", "9")
    assert (status, "--epochs" in errors) == (2, True)
    status, _, errors = run_cli("train", image_folder, "--out", out, "--resume")
    assert (status, "no such file" in errors) == (1, True)
    settings = ["--width", "4", "--epochs", "1", "--batch", "6", "--workers", "1"]
    assert run_cli("train", image_folder, "--out", out, *settings)[0] == 0
    status, _, errors = run_cli("train", image_folder, "--out", out)
    assert (status, "add --resume" in errors) == (2, True)
    status, output, _ = run_cli("train", image_folder, "--out", out, "--resume", "--workers", "1")
    assert (status, "Nothing was left to do" in output) == (0, True)
    other = write_image_folder(tmp_path / "other", side=8, count=9)
    status, _, errors = run_cli("train", other, "--out", out, "--resume")
    assert (status, "other images" in errors) == (1, True)


def test_a_loss_that_is_not_finite_stops_with_advice(small: data.Dataset, tmp_path: Path) -> None:
    run = trainer(small, tmp_path / "run")
    with torch.no_grad():
        next(run.network.head.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"loss became nan.*--lr"):
        run.run(Silent())


def test_decoding_is_cached_until_a_file_changes(
    image_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_folder(image_folder, None, 1, ignore)
    assert len(list(cache.rglob("*.npy"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(data, "decode_files", None)
        again = load_folder(image_folder, None, 1, ignore)
    assert torch.equal(first.images.pixels, again.images.pixels)
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
    moved = augment(pixels, mean, torch.Generator().manual_seed(0), reach=1)
    assert moved.shape == pixels.shape
    for channel in range(3):
        values = set(moved[:, channel].unique().tolist())
        assert values == {1.0, 2.0, 3.0, 4.0, float(mean[channel])}
    distinct = {tuple(image[0].flatten().tolist()) for image in moved}
    assert {(1, 2, 3, 4), (2, 1, 4, 3), (-1, -1, -1, 1)} <= distinct
    kept = augment(pixels, mean, torch.Generator().manual_seed(0), reach=0)
    assert {tuple(i[0].flatten().tolist()) for i in kept} == {(1, 2, 3, 4), (2, 1, 4, 3)}


def test_batches_cover_the_images_once_in_an_order_of_their_own() -> None:
    images = LabelledImages(torch.arange(10).view(10, 1, 1, 1), torch.arange(10))
    order = [labels for _, labels in batches(images, 5, torch.Generator().manual_seed(0))]
    assert torch.equal(torch.cat(order).sort().values, torch.arange(10))
    assert not torch.equal(torch.cat(order), torch.arange(10))
    assert len(list(batches(images, 64, torch.Generator()))) == 1


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


def request(dataset: str, **changes: object) -> TrainingRequest:
    values: dict[str, object] = {
        "dataset": dataset,
        "data": Path("data"),
        "out": Path("runs/x"),
        "image_size": None,
        "device": "cpu",
        "workers": 1,
        "network": {},
        "options": {},
        "command": "",
    }
    return TrainingRequest(**(values | changes))


def test_unknown_datasets_and_options_are_refused() -> None:
    with pytest.raises(DatasetError, match="neither a folder nor one of cifar10, cifar100"):
        prepare(request("cifar11"), resume=False, progress=ignore)
    with pytest.raises(UsageError, match="epochs must be positive"):
        prepare(request("x", options={"epochs": 0}), resume=False, progress=ignore)
    with pytest.raises(UsageError, match="float32 or bfloat16"):
        prepare(request("x", options={"precision": "int4"}), resume=False, progress=ignore)
    with pytest.raises(UsageError, match="width"):
        prepare(request("x", network={"width": 3}), resume=False, progress=ignore)


def test_a_device_that_is_not_there_is_refused(small: data.Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="try --device cpu"):
        trainer(small, tmp_path / "run", device="cuda:99")


def test_cifar_without_a_fitting_torchvision_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DatasetError, match=r"lipdeploy\[cifar\]"):
        data.load_cifar("cifar10", tmp_path)


class FakeCifar:
    """What torchvision's CIFAR datasets look like, without a download."""

    def __init__(self, root: str, *, train: bool, download: bool) -> None:
        import numpy as np

        assert train
        assert download
        assert root == "data"
        self.data = np.arange(5 * 32 * 32 * 3, dtype=np.uint8).reshape(5, 32, 32, 3)
        self.targets = [0, 1, 0, 1, 0]
        self.classes = ["cat", "dog"]


def test_cifar_becomes_channels_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType

    module = ModuleType("torchvision.datasets")
    module.CIFAR10 = module.CIFAR100 = FakeCifar
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    loaded = data.load_cifar("cifar10", Path("data"))
    assert loaded.images.pixels.shape == (5, 3, 32, 32)
    assert loaded.images.pixels[0, 1, 0, 0] == 1
    assert loaded.classes == ("cat", "dog")


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


def test_models_with_nan_or_missing_weights_are_refused(
    small: data.Dataset, tmp_path: Path
) -> None:
    run = trainer(small, tmp_path / "run", epochs=1)
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
