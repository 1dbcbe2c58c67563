"""Validation: certified accuracy while training, and which epoch is kept."""

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Silent, ignore, make_network, make_trainer, random_pixels
from PIL import Image

from lipdeploy.errors import FreezeError
from lipdeploy.exporters import validation as frozen_validation
from lipdeploy.exporters.freeze import freeze
from lipdeploy.exporters.validation import certified_shares
from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.data import Dataset, LabelledImages
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.metrics import EpochMetrics, MetricsTable
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.run_folder import read_checkpoint
from lipdeploy.training.selection import ModelChoice
from lipdeploy.training.validation import MOST_IMAGES, certified_columns

Cli = Callable[..., tuple[int, str, str]]
RADII = (36, 72, 108)
SMALL = ["--width", "4", "--batch", "6", "--workers", "1", "--lr", "0.05"]

pytestmark = pytest.mark.usefixtures("cache")


def sample_set(paths: list[Path], classes: tuple[str, ...]) -> LabelledImages:
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2)
    labels = [classes.index(path.stem.split("-")[0]) for path in paths]
    return LabelledImages(torch.from_numpy(pixels.copy()), torch.tensor(labels))


def test_certified_shares_are_those_of_evaluate(
    run_cli: Cli, source: Path, sample_images: list[Path], test_set: Path
) -> None:
    """On the bundled images: the exported engine, in float16 weights, certifies the same ones."""
    model = load_model(source / "samples" / "model.pt")
    images = sample_set(sample_images, model.card.classes)
    found = certified_shares(model.network, images, RADII)
    arguments = ["--certify", "--guarantee", "network", "--json"]
    engine = source / "samples" / "model.onnx"
    _, output, _ = run_cli("predict", source / "samples", *arguments, "--model", engine)
    rows = [json.loads(line) for line in output.splitlines()]
    right = [row for row in rows if row["label"] == Path(row["path"]).stem.split("-")[0]]
    for share, radius in zip(found, RADII, strict=True):
        expected = sum(row["radius_255"] > radius for row in right)
        assert share == expected / len(rows)
    assert 0 < found[2] < found[0] < 1


@pytest.mark.parametrize("head", ["linear", "lln", "mlp"])
def test_certified_shares_stay_below_accuracy_and_leave_the_network_alone(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_network(head=head)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pixels = random_pixels(150, 8)
    frozen = freeze(network)
    labels = frozen.head.logits(frozen.features(pixels)).argmax(axis=1)
    images = LabelledImages(torch.from_numpy(pixels), torch.from_numpy(labels))
    shares = certified_shares(network, images, (0, 1, 2, 1000))
    assert shares[0] == 1.0
    assert list(shares) == sorted(shares, reverse=True)
    assert shares[-1] == 0
    monkeypatch.setattr(frozen_validation, "MOST_VALUES", 1)  # an image at a time
    assert certified_shares(network, images, (0, 1, 2, 1000)) == shares
    wrong = LabelledImages(images.pixels, (images.labels + 1) % 3)
    assert certified_shares(network, wrong, (0,)) == (0.0,)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def recorded(calls: list[LabelledImages]) -> Callable[..., tuple[float, ...]]:
    def certify(
        network: LipConvNet, images: LabelledImages, radii: tuple[int, ...]
    ) -> tuple[float, ...]:
        assert not network.training
        assert radii == RADII
        calls.append(images)
        return (0.3, 0.2, 0.1)

    return certify


@pytest.mark.parametrize(
    ("every", "expected"), [(0, {7}), (1, set(range(1, 8))), (3, {3, 6, 7}), (9, {7})]
)
def test_it_is_the_turn_of_every_nth_epoch_and_of_the_last(every: int, expected: set[int]) -> None:
    options = TrainingOptions(epochs=7, certify_every=every)
    images = LabelledImages(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
    network = make_network()
    due = set()
    for epoch in range(1, 8):
        row = certified_columns(recorded([]), network, images, epoch, options)
        if row["certified_36"] == 0.3:
            due.add(epoch)
        else:
            assert all(map(math.isnan, row.values()))
    assert due == expected


def test_no_more_than_some_images_are_certified_spread_over_all() -> None:
    calls: list[LabelledImages] = []
    count = 3 * MOST_IMAGES + 7
    images = LabelledImages(torch.zeros(count, 1), torch.arange(count))
    certified_columns(recorded(calls), make_network(), images, 20, TrainingOptions())
    (chosen,) = calls
    assert len(chosen) == MOST_IMAGES
    assert len(chosen.labels.unique()) == MOST_IMAGES
    assert int(chosen.labels[-1]) > count - 10


def test_only_validation_images_are_certified_and_training_stays_the_same(
    small: Dataset, tmp_path: Path
) -> None:
    plain = make_trainer(small, tmp_path / "plain")
    plain.run(Silent())
    calls: list[LabelledImages] = []
    run = make_trainer(small, tmp_path / "run", certify_every=2)

    def certify(*arguments: object) -> tuple[float, ...]:
        recorded(calls)(*arguments)
        return certified_shares(*arguments)

    run.certify = certify
    run.run(Silent())
    assert [len(images) for images in calls] == [len(run.validation)] * 2
    assert torch.equal(calls[0].pixels, run.validation.pixels)
    for name, value in plain.network.state_dict().items():
        assert torch.equal(run.network.state_dict()[name], value)
    measured = [not math.isnan(row["certified_36"]) for row in run.files.metrics.rows()]
    assert measured == [False, True, False, True]


def test_certified_accuracy_is_printed_and_kept_in_the_table(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = [*SMALL, "--epochs", "3", "--validation", "0.25"]
    status, output, _ = run_cli("train", image_folder, "--out", out, *settings)
    assert status == 0
    lines = [line for line in output.splitlines() if line.startswith("epoch")]
    has_shares = [bool(re.search(r"certified at 36, 72, 108/255 [\d.]+%,", x)) for x in lines]
    assert has_shares == [False, False, True]
    with (out / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    old = [
        "epoch",
        "seconds",
        "learning_rate",
        "loss",
        "accuracy",
        "validation_loss",
        "validation_accuracy",
    ]
    assert list(rows[0])[:7] == old
    assert list(rows[0])[7:] == ["certified_36", "certified_72", "certified_108"]
    assert [row["certified_72"] == "nan" for row in rows] == [True, True, False]
    shares = [float(rows[-1][f"certified_{radius}"]) for radius in RADII]
    assert float(rows[-1]["validation_accuracy"]) >= shares[0] >= shares[1] >= shares[2]


def test_a_network_that_cannot_be_frozen_does_not_end_its_training(
    run_cli: Cli, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise FreezeError("not today")

    monkeypatch.setattr(frozen_validation, "certified_shares", fail)
    settings = [*SMALL, "--epochs", "1", "--validation", "0.25"]
    status, output, errors = run_cli("train", image_folder, "--out", tmp_path / "run", *settings)
    assert (status, "certified at" in output) == (0, False)
    assert "Not certified: not today" in errors
    assert "had none to choose" not in errors
    choose = [*settings, "--keep", "best", "--certify-every", "1"]
    status, _, errors = run_cli("train", image_folder, "--out", tmp_path / "best", *choose)
    assert status == 0
    assert "model.pt holds the last epoch, 1: --keep best had none to choose" in errors


def test_a_table_of_an_older_version_keeps_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,seconds,loss\r\n1,2.0,0.5\r\n")
    table = MetricsTable(path)
    table.append(EpochMetrics(2, 2.0, 0.1, 0.4, 0.5, 0.6, 0.7, 0.3, 0.2, 0.1))
    assert path.read_text().splitlines() == ["epoch,seconds,loss", "1,2.0,0.5", "2,2.0,0.4"]
    assert [row["loss"] for row in table.rows()] == [0.5, 0.4]


def metrics(epoch: int, accuracy: float, certified: float = math.nan) -> EpochMetrics:
    return EpochMetrics(epoch, 1.0, 0.1, 0.5, 0.9, 0.5, accuracy, certified)


def kept_after(rows: list[EpochMetrics], **options: object) -> tuple[int, float]:
    """The epoch that is kept, and a weight that is its number."""
    network, choice = make_network(), ModelChoice(TrainingOptions(**options), 10)
    for row in rows:
        with torch.no_grad():
            network.head.linear.bias.fill_(row.epoch)
        choice.offer(row, network)
    epoch, chosen = choice.chosen(rows[-1].epoch, network)
    return epoch, float(chosen.head.linear.bias.detach()[0])


ACCURACIES = [0.5, 0.8, 0.7, 0.8, 0.6]


def test_the_last_epoch_is_kept_unless_asked() -> None:
    rows = [metrics(i, a) for i, a in enumerate(ACCURACIES, start=1)]
    assert kept_after(rows) == (5, 5.0)


def test_the_best_epoch_is_the_most_accurate_of_equals_the_later() -> None:
    rows = [metrics(i, a) for i, a in enumerate(ACCURACIES, start=1)]
    assert kept_after(rows, keep="best") == (4, 4.0)


def test_where_radii_are_measured_they_decide_among_epochs_that_have_them() -> None:
    certified = [0.2, math.nan, 0.4, 0.3, math.nan]
    rows = [metrics(i, a, c) for i, (a, c) in enumerate(zip(ACCURACIES, certified, strict=True), 1)]
    assert kept_after(rows, keep="best", certify_every=1) == (3, 3.0)
    unmeasured = [metrics(1, 0.5), metrics(2, 0.4)]
    assert kept_after(unmeasured, keep="best", certify_every=1) == (2, 2.0)
    # Only the last epoch has a radius where none was asked for; that must not decide.
    rows = [metrics(1, 0.9), metrics(2, 0.8, 0.7)]
    assert kept_after(rows, keep="best") == (1, 1.0)


def test_the_model_file_holds_the_best_epoch_and_is_written_again_if_lost(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = [*SMALL, "--epochs", "4", "--validation", "0.25", "--keep", "best"]
    status, _, errors = run_cli("train", image_folder, "--out", out, *settings)
    assert status == 0
    rows = MetricsTable(out / "metrics.csv").rows()
    best = max(rows, key=lambda row: (row["validation_accuracy"], row["epoch"]))
    model = load_model(out / "model.pt")
    assert model.card.epochs == best["epoch"]
    assert f"model.pt holds epoch {model.card.epochs}, the best by validation" in errors
    data = (out / "model.pt").read_bytes()
    (out / "model.pt").unlink()
    assert run_cli("train", image_folder, "--out", out, "--resume", "--workers", "1")[0] == 0
    assert (out / "model.pt").read_bytes() == data


def test_the_kept_weights_have_the_accuracy_that_chose_them(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", keep="best", epochs=6, learning_rate=0.4)
    run.run(Silent())
    found = read_checkpoint(run.folder, ignore).state.best
    row = run.files.metrics.rows()[found["epoch"] - 1]
    run.network.load_state_dict(load_model(run.model_path).network.state_dict())
    assert run.evaluate(run.validation)[1] == row["validation_accuracy"] == found["score"]
