"""Training end to end on a small folder, and what it leaves behind."""

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Silent, ignore, make_trainer, write_image_folder

from lipdeploy.errors import DatasetError, TrainingError, UsageError
from lipdeploy.training import learner
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.data import Dataset, LabelledImages
from lipdeploy.training.loop import Trainer
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.run_folder import read_checkpoint
from lipdeploy.training.session import TrainingRequest, prepare

Cli = Callable[..., tuple[int, str, str]]


pytestmark = pytest.mark.usefixtures("cache")


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
    assert (status, errors.count("\n")) == (0, 1)
    assert "22 images of 2 classes to train on, 2 set aside" in errors
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


def test_the_model_file_holds_tensors_and_plain_values_only(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=1)
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


def test_a_model_read_back_is_the_trained_network(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=1)
    run.run(Silent())
    again = load_model(run.model_path)
    run.network.eval()
    pixels = small.images.pixels[:4].float()
    assert torch.equal(again.network(pixels), run.network(pixels))


def weights(run: Trainer) -> list[torch.Tensor]:
    return [value.clone() for value in run.network.state_dict().values()]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_is_the_undisturbed_run_bit_for_bit(
    small: Dataset, tmp_path: Path, precision: str
) -> None:
    whole = make_trainer(small, tmp_path / "whole", precision=precision)
    whole.run(Silent())

    class Interrupt(Silent):
        def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
            if (epoch, step) == (3, 2):
                raise KeyboardInterrupt

    broken = make_trainer(small, tmp_path / "broken", precision=precision)
    with pytest.raises(KeyboardInterrupt):
        broken.run(Interrupt())
    resumed = make_trainer(small, tmp_path / "broken", precision=precision)
    with (tmp_path / "broken" / "metrics.csv").open("a") as stream:
        stream.write("3,killed,between,metrics,and,checkpoint,0\r\n")
    found = read_checkpoint(resumed.folder, ignore)
    resumed.resume(found.state, seen=found.seen)
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
        Dataset("noise", ("a", "b", "c"), images),
        architecture,
        TrainingOptions(epochs=4),
        tmp_path / "run",
        "",
    )
    run.run(Silent())
    with (tmp_path / "run" / "metrics.csv").open() as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert max(losses) < 100


def test_the_seed_decides_everything(small: Dataset, tmp_path: Path) -> None:
    runs = [
        make_trainer(small, tmp_path / name, epochs=1, seed=s)
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
        patch.setattr(learner, "training_loss", interrupt)
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
    assert (status, "start the run, without --resume" in errors) == (1, True)
    assert not out.exists()
    settings = ["--width", "4", "--epochs", "1", "--batch", "6", "--workers", "1"]
    assert run_cli("train", image_folder, "--out", out, *settings)[0] == 0
    status, _, errors = run_cli("train", image_folder, "--out", out)
    assert (status, "add --resume" in errors) == (2, True)
    status, _, errors = run_cli("train", image_folder, "--out", out, "--resume", "--workers", "1")
    assert (status, "Nothing was left to do" in errors) == (0, True)
    other = write_image_folder(tmp_path / "other", side=8, count=9)
    status, _, errors = run_cli("train", other, "--out", out, "--resume")
    assert (status, "other images" in errors) == (1, True)


def test_a_loss_that_is_not_finite_stops_with_advice(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run")
    with torch.no_grad():
        next(run.network.head.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"loss became nan.*--lr"):
        run.run(Silent())


def test_a_device_that_is_not_there_is_refused(small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"^--device cuda:99: torch \d\S* (is|has) .*; use --device cpu, "
    ):
        make_trainer(small, tmp_path / "run", device="cuda:99")


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
    def refuse(kind: type[Exception], message: str, dataset: str = "x", **changes: object) -> None:
        with pytest.raises(kind, match=message):
            prepare(request(dataset, **changes), resume=False, progress=ignore, note=print)

    refuse(DatasetError, "expected a folder, or one of cifar10, cifar100; did you mean", "cifar11")
    refuse(UsageError, "--epochs 0: must be positive", options={"epochs": 0})
    refuse(UsageError, "expected one of float32, bfloat16", options={"precision": "int4"})
    refuse(UsageError, "width", network={"width": 3})


def test_the_first_interrupt_ends_the_run_after_its_epoch(
    run_cli: Cli, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, output, errors = interrupted(run_cli, image_folder, tmp_path, monkeypatch, times=1)
    assert status == 130
    assert "Stopping after epoch 2; press Ctrl-C again" in errors
    assert "holds epoch 2." in output
    assert load_model(tmp_path / "run" / "model.pt").card.epochs == 2


def test_the_second_interrupt_ends_it_at_once(
    run_cli: Cli, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, output, errors = interrupted(run_cli, image_folder, tmp_path, monkeypatch, times=2)
    assert status == 130
    assert errors.count("Ctrl-C") == 1
    assert "holds epoch 1." in output
    assert f"--out {tmp_path / 'run'} --resume" in output
    assert "Traceback" not in errors


def interrupted(
    run_cli: Cli, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> tuple[int, str, str]:
    """Train, with real signals at the seventh step, the third of the second epoch."""
    calls, whole = iter(range(1000)), learner.training_loss

    def loss(*arguments: object, **options: object) -> torch.Tensor:
        if next(calls) == 6:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return whole(*arguments, **options)

    monkeypatch.setattr(learner, "training_loss", loss)
    settings = ["--width", "4", "--epochs", "4", "--batch", "6", "--workers", "1"]
    settings += ["--validation", "0"]
    return run_cli("train", image_folder, "--out", tmp_path / "run", *settings)


def test_a_resumed_run_can_change_rate_and_precision_only(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = ["--width", "4", "--epochs", "2", "--batch", "6", "--workers", "1"]
    assert run_cli("train", image_folder, "--out", out, *settings)[0] == 0
    again = ["--out", out, "--resume", "--workers", "1"]
    change = ["--lr", "0.01", "--precision", "bfloat16", "-v"]
    status, _, errors = run_cli("train", image_folder, *again, *change)
    assert status == 0
    assert "learning_rate=0.01" in errors
    assert "precision='bfloat16'" in errors


def test_a_lost_model_is_written_again(run_cli: Cli, image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ["--width", "4", "--epochs", "1", "--batch", "6", "--validation", "0"]
    status, output, _ = run_cli("train", image_folder, "--out", out, *settings)
    assert (status, "nan" in output) == (0, False)
    before = load_model(out / "model.pt")
    (out / "model.pt").write_bytes(b"an engine, by mistake")
    assert run_cli("train", image_folder, "--out", out, "--resume")[0] == 0
    (out / "model.pt").unlink()
    assert run_cli("train", image_folder, "--out", out, "--resume")[0] == 0
    again = load_model(out / "model.pt")
    assert again.card == before.card
    for name, value in before.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name


def test_a_start_that_fails_leaves_no_folder(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    (image_folder / "train" / "dark" / "00.png").write_text("no image")
    status, _, errors = run_cli("train", image_folder, "--out", tmp_path / "run")
    assert (status, "remove or replace the image" in errors) == (1, True)
    assert not (tmp_path / "run").exists()
