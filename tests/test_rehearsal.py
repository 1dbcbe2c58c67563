"""--dry-run: what it says of a run is what the run is, and it leaves nothing behind."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ignore, make_network, write_image_folder

from lipdeploy.exporters.freeze import freeze, layer_shapes
from lipdeploy.exporters.onnx_cost import CostModel
from lipdeploy.exporters.plan import Target, make_plan
from lipdeploy.exporters.rehearsal import frozen_macs
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.rehearsal import Rehearsal, rehearse
from lipdeploy.training.session import TrainingRequest, prepare

Cli = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("cache")


def request(dataset: Path | str, out: Path, **changes: object) -> TrainingRequest:
    values: dict[str, object] = {
        "dataset": str(dataset),
        "data": Path("data"),
        "out": out,
        "image_size": None,
        "device": "cpu",
        "workers": 1,
        "network": {"width": 4},
        "options": {"batch_size": 6, "validation": 0.2},
        "command": "",
    }
    return TrainingRequest(**(values | changes))


def test_nothing_is_written_and_the_table_is_printed(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "run"
    status, output, errors = run_cli(
        "train", image_folder, "--out", out, "--width", "4", "--batch", "6", "--dry-run"
    )
    assert (status, errors) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before
    total = next(line for line in output.splitlines() if line.startswith("all"))
    network = LipConvNet(Architecture(8, 2, width=4), torch.zeros(3))
    parameters = sum(p.numel() for p in network.parameters())
    assert total.split()[1] == f"{parameters:,}"
    assert "images   22 to train on, 2 set aside" in output
    assert "steps    3 an epoch of 6 images; 20 epochs; float32 on cpu" in output
    assert re.search(r"time +\d+ ms a step", output)
    assert re.search(r"memory +[\d.]+ MiB: weights", output)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": None, "validation": 0.2},
        {"batch_size": 6, "validation": 0.0},
        {"batch_size": 100},
        {"ema": 0.9, "keep": "best", "certify_every": 2, "precision": "bfloat16", "epochs": 3},
    ],
    ids=str,
)
def test_images_and_steps_are_those_of_the_run(
    image_folder: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    asked = request(image_folder, tmp_path / "run", options=options)
    found = rehearse(asked)
    run = prepare(asked, resume=False, progress=ignore, note=print)
    assert found.images == (len(run.training), len(run.validation))
    assert found.steps == run.steps
    assert found.batch_size == run.share.batch
    assert found.options == run.options
    assert found.step_seconds > 0
    assert found.memory["images"] == run.dataset.images.pixels.numel()
    parameters = sum(p.numel() for p in run.network.parameters())
    assert sum(layer.parameters for layer in found.layers) == parameters


def rehearsed(tmp_path: Path, dataset: str = "cifar10", **changes: object) -> Rehearsal:
    return rehearse(request(dataset, tmp_path / "run", **changes))


def test_cifar_is_known_without_a_download(tmp_path: Path) -> None:
    found = rehearsed(tmp_path, options={"batch_size": 8})
    assert found.images == (47_500, 2_500)
    assert found.memory["images"] == 50_000 * 3 * 32 * 32
    assert found.network.architecture.classes == 10
    many = rehearsed(tmp_path, "cifar100", options={"batch_size": 8})
    assert many.layers[-1].shape == (100,)


def test_layers_are_those_of_the_network_with_their_shapes(tmp_path: Path) -> None:
    found = rehearsed(tmp_path, options={"batch_size": 8})
    kinds = [type(module).__name__ for module in found.network.body]
    assert [layer.kind for layer in found.layers] == [*kinds, "NormalizedHead"]
    assert found.layers[0].shape == (32, 32, 4)
    assert found.layers[-2].shape == (1, 1, 128)
    assert found.layers[-1].shape == (10,)


def test_multiplications_are_counted_exactly_where_they_can_be_written_down(
    tmp_path: Path,
) -> None:
    """A matrix layer: five products of its series; and unfoldings, shared by the batch."""
    found = rehearsed(tmp_path, options={"batch_size": 8})
    layers = {layer.name: layer for layer in found.layers}
    assert layers["head"].macs == 128 * 10
    matrix = layers[found.layers[-3].name]
    channels = matrix.shape[-1]
    assert 5 * channels**2 <= matrix.macs <= 6 * channels**2


def test_frozen_multiplications_are_those_that_an_export_plans() -> None:
    network = make_network(image_size=16)
    found = frozen_macs(network)
    shapes = layer_shapes(network)
    plan = make_plan(shapes, "auto", Target(), CostModel())
    assert [choice.form for choice in plan] == [
        layer.operator.form for layer in freeze(network).linear()
    ]
    names = dict(network.named_modules())
    assert set(found) <= set(names)
    assert found["head"] == network.architecture.features * 3
    assert len(found) == len(shapes) + 1
    assert all(count > 0 for count in found.values())
    with_hidden = frozen_macs(make_network(image_size=16, head="mlp"))
    features = network.architecture.features
    assert with_hidden["head"] == features**2 + 3 * features


def kept_for(folder: Path, out: Path, **options: object) -> int:
    found = rehearse(request(folder, out, options=options))
    return found.memory["kept for the backward pass"]


def test_a_step_in_parts_keeps_as_much_as_one_of_them(image_folder: Path, tmp_path: Path) -> None:
    parts = kept_for(image_folder, tmp_path, batch_size=12, accumulate=3)
    assert parts == kept_for(image_folder, tmp_path, batch_size=4)


def test_streamed_images_take_no_memory(image_folder: Path, tmp_path: Path) -> None:
    assert rehearsed(tmp_path, str(image_folder), stream=True).memory["images"] == 0


def test_every_image_of_a_batch_keeps_as_much_for_the_backward_pass(
    image_folder: Path, tmp_path: Path
) -> None:
    """At least what the first activation compares, and the same for each, once there are so many
    that all layers form their exponentials."""
    kept = [kept_for(image_folder, tmp_path, batch_size=batch) for batch in (12, 16, 20)]
    assert kept[2] - kept[1] == pytest.approx(kept[1] - kept[0], rel=0.1)
    assert kept[1] - kept[0] > 4 * 8 * 8 * 4 * 4


def test_images_that_are_resized_take_twice_the_bytes(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "images", side=10)
    whole, resized = (rehearsed(tmp_path, str(folder), image_size=size) for size in (10, 8))
    assert whole.memory["images"] == 24 * 3 * 100
    assert resized.memory["images"] == 24 * 3 * 64 * 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resume", "--out", "x"], "--dry-run is about a new run"),
        (["--keep", "best", "--validation", "0"], "--keep best needs validation images"),
        (["--width", "3"], "--width 3: must be an even number"),
        (["--batch", "8", "--accumulate", "3"], "does not divide into 3 equal parts"),
        (["--device", "cuda:99"], "use --device cpu, or "),
    ],
    ids=str,
)
def test_what_a_run_would_refuse_is_refused(
    run_cli: Cli, image_folder: Path, more: list[str], message: str
) -> None:
    status, _, errors = run_cli("train", image_folder, "--width", "4", "--dry-run", *more)
    assert status != 0
    assert message in errors
    assert errors.count("\n") == 1
