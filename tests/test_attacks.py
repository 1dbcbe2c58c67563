"""Attacks: what they find is true, what they cannot find is known, and false certificates fall."""

import csv
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_network, own_test_set
from PIL import Image
from soundness.networks import linear_network, train
from soundness.worst_cases import engine_of

from lipdeploy.arithmetic import ARITHMETICS
from lipdeploy.artifact import Manifest, make_manifest
from lipdeploy.attacks.attacker import Attacker, AttackOptions, attacked
from lipdeploy.attacks.auto_attack import auto_attack
from lipdeploy.attacks.gradients import differentiable
from lipdeploy.attacks.searches import margins, minimal_norm, within_ball
from lipdeploy.cli.attack import check_pair_command
from lipdeploy.datasets import LabelledSources, scan_folder
from lipdeploy.exporters.freeze import freeze
from lipdeploy.exporters.onnx_file import onnx_bytes, read_onnx
from lipdeploy.exporters.verify import verify
from lipdeploy.frozen import FrozenNetwork, Linear
from lipdeploy.images import PREPROCESSING
from lipdeploy.predictor import Predictor
from lipdeploy.rounding import Rounding
from lipdeploy.sandwich import Attacked, Sandwich

Cli = Callable[..., tuple[int, str, str]]
SIDE = 8
CLASSES = ("ant", "bee", "cow")
RADII = tuple(Fraction(n, 255) for n in (36, 72, 108))


@pytest.fixture(scope="module")
def trained() -> FrozenNetwork:
    """A convolutional network with wide margins on three classes."""
    network = make_network(1, SIDE, head="lln")
    train(network, 1)
    return freeze(network.double()).stored_as("float32")


def write_engine(network: FrozenNetwork, certified: FrozenNetwork, path: Path) -> Path:
    """The engine of a network with the bounds that were proven for another one."""
    preprocessing = {"size": network.image_size, **PREPROCESSING}
    manifest: Manifest = make_manifest(certified, CLASSES, preprocessing, {}, {})
    manifest = replace(manifest, sha256=manifest.digest(network.weights()))
    path.write_bytes(onnx_bytes(network, manifest))
    return path


def scaled(network: FrozenNetwork, layer: int, factor: float) -> FrozenNetwork:
    """With the matrix of one linear layer times a number."""
    operations, index = list(network.operations), 0
    for position, operation in enumerate(operations):
        if isinstance(operation, Linear):
            if index == layer:
                operator = operation.operator.scaled(factor).stored_as("float32")
                operations[position] = Linear(operator, operation.bias)
            index += 1
    return replace(network, operations=tuple(operations))


def pictures(count: int, side: int, seed: int, spread: float = 60.0) -> np.ndarray:
    """Images around the middle grey, shape (count, side, side, 3), uint8."""
    noise = np.random.default_rng(seed).normal(128, spread, (count, side, side, 3))
    return noise.clip(0, 255).round().astype(np.uint8)


def labelled(predictor: Predictor, images: np.ndarray) -> LabelledSources[np.ndarray]:
    """A dataset on which every answer of a predictor is right."""
    labels = [prediction.class_index for prediction in predictor(list(images))]
    return LabelledSources("made", predictor.manifest.classes, list(images), labels)


def attack(
    predictor: Predictor, images: np.ndarray, options: AttackOptions | None = None
) -> list[Attacked]:
    attacker = Attacker(predictor, options or AttackOptions(RADII), "cpu")
    return list(attacked(attacker, predictor, labelled(predictor, images)))


def exact_distances(network: FrozenNetwork, pixels: np.ndarray) -> np.ndarray:
    """Of each input from the nearest other class of a linear network, in pixels of 0 ... 255."""
    logits = network.head.logits(network.features(pixels))
    units = np.eye(pixels[0].size).reshape(-1, *pixels.shape[1:])
    at_zero = network.head.logits(network.features(0 * pixels[:1]))
    slopes = (network.head.logits(network.features(units)) - at_zero).T
    distances = []
    for row, y in zip(logits, logits.argmax(axis=1), strict=True):
        rivals = [j for j in range(len(row)) if j != y]
        gaps = [(row[y] - row[j]) / np.linalg.norm(slopes[y] - slopes[j]) for j in rivals]
        distances.append(min(gaps))
    return np.array(distances)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_exact_distance_of_a_linear_network_is_found_within_a_per_cent(seed: int) -> None:
    network = linear_network(seed)
    images = pictures(16, network.image_size, seed, spread=5)
    exact = exact_distances(network, images.transpose(0, 3, 1, 2).astype(np.float64))
    room = min(images.min(), 255 - images.max())
    assert exact.max() < room, "the ends of the pixel range must not matter"
    with Predictor(engine_of(network, "blocked"), batch_size=5) as predictor:
        found = attack(predictor, images)
    for item, distance in zip(found, exact, strict=True):
        assert item.broken is None
        assert item.radius_255 <= distance * (1 + 1e-9)
        assert item.radius_255 < item.distance_255
        assert distance * (1 - 1e-4) <= item.distance_255 <= 1.01 * distance
    assert max(item.ratio for item in found) < 1.05


@pytest.mark.parametrize("guarantee", ["program", "network"])
def test_no_attack_breaks_an_honest_certificate(trained: FrozenNetwork, guarantee: str) -> None:
    with Predictor(engine_of(trained, "blocked"), guarantee=guarantee) as predictor:
        found = attack(predictor, pictures(24, SIDE, 0))
    assert sum(item.radius_255 > 0 for item in found) >= 20
    for item in found:
        assert item.broken is None
        assert item.nearest is not None
        assert item.distance_255 > item.radius_255
    sandwich = counted(found)
    for radius in RADII:
        assert sandwich.certified(radius) <= sandwich.under_attack(radius)
    assert sandwich.broken == 0
    assert 1 < sandwich.smallest_ratio <= sandwich.median_ratio


def test_what_is_found_is_what_the_engine_says_at_no_less_than_the_exact_distance(
    trained: FrozenNetwork,
) -> None:
    images = pictures(8, SIDE, 3)
    with Predictor(engine_of(trained, "blocked")) as predictor:
        found = attack(predictor, images)
        for item in found:
            pixels = item.nearest.pixels
            _, logits = predictor.runtime.run(pixels[None])
            assert logits.argmax() == item.nearest.class_index != item.result.class_index
            assert pixels.dtype == np.float32
            assert 0 <= pixels.min() <= pixels.max() <= 255
            pairs = zip(pixels.ravel().tolist(), item.pixels.ravel().tolist(), strict=True)
            squared = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs)
            assert squared <= Fraction(item.nearest.distance_255) ** 2 <= squared * (1 + 1e-9)


def test_the_same_seed_finds_the_same(trained: FrozenNetwork) -> None:
    images, generator = pictures(6, SIDE, 4), torch.get_rng_state()
    with Predictor(engine_of(trained, "blocked"), batch_size=4) as predictor:
        first, second = (attack(predictor, images) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.nearest.pixels, b.nearest.pixels)
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize(
    ("head", "precision"), [("lln", "float32"), ("mlp", "float32"), ("lln", "bfloat16")]
)
def test_gradients_are_those_of_the_frozen_network(head: str, precision: str) -> None:
    arithmetic = ARITHMETICS[precision]
    network = freeze(make_network(2, SIDE, head=head)).stored_as("float32").rounded_to(arithmetic)
    manifest = make_manifest(network, CLASSES, {}, {}, {}, Rounding.of_graph(arithmetic, "blocked"))
    model, device = differentiable(network, manifest, "cpu")
    assert device == "cpu"
    generator = np.random.default_rng(0)
    pixels = generator.uniform(0, 255, (3, 3, SIDE, SIDE))
    towards = generator.normal(size=(3, 3, SIDE, SIDE))
    images = torch.tensor(pixels / 255).float().requires_grad_(True)
    logits = model(images)
    expected = network.head.logits(network.features(pixels))
    assert np.allclose(logits.detach().numpy(), expected, atol=1e-5)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), images)
    slopes = (gradient.numpy() * towards).sum(axis=(1, 2, 3))
    step = 1e-4
    ends = [network.head.logits(network.features(pixels + s * step * towards)) for s in (1, -1)]
    assert np.allclose(slopes, 255 * (ends[0] - ends[1])[:, 0] / (2 * step), rtol=1e-3, atol=1e-3)


def test_a_distance_of_zero_in_the_network_does_not_blind_the_attack() -> None:
    """Without biases the middle of the pixel range is 0 everywhere, and so are all distances."""
    trained = make_network(0, SIDE, bias_scale=0, pooling="projection")
    with torch.no_grad():
        trained.head.linear.bias[0] = 0.05
    network = freeze(trained.double()).stored_as("float32")
    manifest = make_manifest(
        network, CLASSES, {}, {}, {}, Rounding.of_graph(ARITHMETICS["float32"], "blocked")
    )
    model, _ = differentiable(network, manifest, "cpu")
    mean = trained.mean.detach().float().reshape(1, 3, 1, 1) / 255
    images = mean.expand(2, 3, SIDE, SIDE).clone()
    images[1, :, :, SIDE // 2 :] += 0.1
    images.requires_grad_(True)
    (slopes,) = torch.autograd.grad(margins(model(images), torch.tensor([0, 0])).sum(), images)
    assert torch.isfinite(slopes).all()
    assert slopes[1].abs().max() > 0


def linear(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Two classes; the second one where the weighted sum of the pixels' changes is above 1."""

    def model(x: torch.Tensor) -> torch.Tensor:
        lead = (x.flatten(1) - 0.5) @ weight
        return torch.stack([torch.ones_like(lead), lead], dim=1)

    return model


def test_where_the_last_step_leads_is_tried() -> None:
    """One gradient of a linear network leads straight over the border."""
    weight = torch.randn(3 * SIDE * SIDE, generator=torch.Generator().manual_seed(0))
    model, images = linear(weight), torch.full((1, 3, SIDE, SIDE), 0.5)
    labels, distance = torch.tensor([0]), 1 / float(weight.norm())
    nearest = minimal_norm(model, images, labels, steps=1)
    assert distance < float((nearest - images).norm()) < 1.03 * distance
    assert model(nearest).argmax() == 1
    radii = torch.tensor([1.1 * distance])
    worst = within_ball(model, images, labels, radii, steps=1, restarts=1, seed=0)
    assert model(worst).argmax() == 1


@pytest.mark.parametrize("classes", [3, 6])
def test_autoattack_finds_what_lies_inside_and_nothing_outside(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, 192, generator=generator)
    scales = torch.tensor([0.002, 0.005, 0.02, 0.05])[:, None, None, None]
    images = 0.5 + scales * torch.randn(4, 3, 8, 8, generator=generator)
    before, trace = torch.get_rng_state(), sys.gettrace()

    def model(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) - 0.5) @ weight.T

    logits = model(images)
    labels = logits.argmax(dim=1)
    own = logits.amax(dim=1, keepdim=True)
    slopes = (weight[labels][:, None] - weight[None]).norm(dim=2)
    distances = torch.where(slopes > 0, (own - logits) / slopes, torch.inf).amin(dim=1)
    radius = float(distances.sort().values[1:3].mean())
    found = auto_attack(model, images, labels, radius, classes=classes, seed=0)
    is_broken = model(found).argmax(dim=1) != labels
    inside, outside = distances < 0.99 * radius, distances > 1.01 * radius
    assert inside.any()
    assert outside.any()
    assert is_broken[inside].all()
    assert not is_broken[outside].any()
    assert ((found - images).flatten(1).norm(dim=1) <= radius * (1 + 1e-4)).all()
    assert torch.equal(before, torch.get_rng_state())
    assert sys.gettrace() is trace


def test_autoattack_is_run_where_it_is_asked_for(trained: FrozenNetwork) -> None:
    images, radius = pictures(4, SIDE, 0), Fraction(200, 255)
    options = AttackOptions((radius,), minimal_steps=0, ball_steps=0, auto_attack=True)
    with Predictor(engine_of(trained, "blocked")) as predictor:
        items = labelled(predictor, images)
        found = list(attacked(Attacker(predictor, options, "cpu"), predictor, items))
        nearest = [item.distance_255 for item in attack(predictor, images)]
    for item, distance in zip(found, nearest, strict=True):
        assert item.broken is None
        if distance < 195:
            assert item.radius_255 < item.distance_255 <= 200
    assert "AutoAttack" in {item.nearest.attack for item in found if item.nearest}


# planted unsound models


@pytest.fixture
def data(trained: FrozenNetwork, tmp_path: Path) -> Path:
    """Images as test/<class>/*, all named as the honest network sees them, of each class some."""
    with Predictor(engine_of(trained, "blocked"), certify=False) as predictor:
        made = labelled(predictor, pictures(40, SIDE, 5))
    for index, (label, image) in enumerate(zip(made.labels, made.sources, strict=True)):
        folder = tmp_path / "data" / "test" / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:02d}.png")
    assert scan_folder(tmp_path / "data", "test").classes == CLASSES
    return tmp_path / "data"


@pytest.mark.parametrize("factor", [1.2, 3.0])
def test_a_layer_scaled_after_certification_is_caught_by_verify(
    trained: FrozenNetwork, tmp_path: Path, factor: float
) -> None:
    honest = write_engine(trained, trained, tmp_path / "honest.onnx")
    assert all(check.passed for check in verify(honest))
    planted = write_engine(scaled(trained, 1, factor), trained, tmp_path / "planted.onnx")
    failed = {c.name for c in verify(planted) if c.verdict == "soundness" and c.passed is False}
    assert {"Lipschitz bound"} | {n for n in failed if n.startswith("norm of layer 1")} <= failed
    assert any(name.startswith("norm of layer 1") for name in failed)


@pytest.mark.parametrize("guarantee", ["program", "network"])
def test_a_layer_scaled_by_3_after_certification_is_caught_by_attacks(
    trained: FrozenNetwork,
    data: Path,
    tmp_path: Path,
    run_cli: Cli,
    guarantee: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    planted = write_engine(scaled(trained, 1, 3.0), trained, tmp_path / "my planted.onnx")
    given = ("--guarantee", guarantee, "--runtime", "onnxruntime", "--device", "cpu")
    status, out, errors = run_cli("evaluate", planted, data, "--attack", "--json", *given)
    summary = json.loads(out)["attack"]
    assert status == 1
    assert summary["broken_certificates"] == len(summary["pairs"]) > 0
    assert summary["smallest_ratio"] < 1
    assert errors.count("SOUNDNESS FAILURE") == summary["broken_certificates"]
    pair = summary["pairs"][0]
    assert pair["distance_255"] < pair["radius_255"]
    assert Path(pair["original"]).with_suffix(".png").is_file()
    (told, *_) = (line for line in errors.splitlines() if "SOUNDNESS FAILURE" in line)
    command = shlex.split(told.partition("type: ")[2])
    assert command[:4] == ["lipdeploy", "check-pair", pair["original"], pair["adversarial"]]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options == {
        "--model": str(planted),
        "--guarantee": guarantee,
        "--runtime": "onnxruntime",
        "--device": "cpu",
    }
    status, out, errors = run_cli(*command[1:])
    assert (status, "contradict the guarantee" in errors) == (1, True)


def test_the_command_for_a_trained_model_exports_it_first(
    trained: FrozenNetwork,
    data: Path,
    tmp_path: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Freezing is made unsound here: that of a trained model would be honest."""
    monkeypatch.chdir(tmp_path)
    planted = write_engine(scaled(trained, 1, 3.0), trained, tmp_path / "planted.onnx")
    engine = replace(read_onnx(planted), name="my model.pt, frozen")
    monkeypatch.setattr("lipdeploy.exporters.trained.build_engine", lambda *_: engine)
    (tmp_path / "my model.pt").touch()
    errors = run_cli("evaluate", "my model.pt", data, "--attack", "--attack-images", "12")[2]
    (told, *_) = (line for line in errors.splitlines() if "SOUNDNESS FAILURE" in line)
    first, second = told.partition("type: ")[2].split(" && ")
    assert shlex.split(first) == ["lipdeploy", "export", "my model.pt", "--output", "my model.onnx"]
    assert shlex.split(second)[4:8] == ["--model", "my model.onnx", "--guarantee", "program"]


def test_tight_certificates_are_compared_tightly() -> None:
    settings = {"runtime": "auto", "device": "auto", "tight": True}
    pair = Path("my pictures/a.npy"), Path("b.npy")
    command = shlex.split(check_pair_command(Path("a.onnx"), "network", settings, *pair))
    assert command[:4] == ["lipdeploy", "check-pair", *map(str, pair)]
    assert command[-1] == "--tight"


def test_attacks_do_not_see_a_layer_scaled_by_1_2(
    source: Path, tmp_path: Path, run_cli: Cli
) -> None:
    """What the documents say of small unsoundness: it hides in the gap of the bundled model."""
    honest = read_onnx(source / "samples" / "model.onnx")
    network = scaled(honest.network, 1, 1.2)
    manifest = replace(honest.manifest, sha256=honest.manifest.digest(network.weights()))
    planted, own = tmp_path / "planted.onnx", own_test_set(tmp_path / "own", source / "samples")
    planted.write_bytes(onnx_bytes(network, manifest))
    status, out, _ = run_cli(
        "evaluate", planted, own, "--attack", "--attack-images", "10", "--json"
    )
    summary = json.loads(out)["attack"]
    assert (status, summary["broken_certificates"]) == (0, 0)
    assert summary["compared"] >= 5
    assert summary["smallest_ratio"] > 1
    assert any(c.verdict == "soundness" and c.passed is False for c in verify(planted))


def test_an_honest_model_passes_where_the_planted_one_fails(
    trained: FrozenNetwork, data: Path, tmp_path: Path, run_cli: Cli
) -> None:
    honest = write_engine(trained, trained, tmp_path / "honest.onnx")
    status, out, errors = run_cli("evaluate", honest, data, "--attack", "--attack-images", "12")
    assert (status, "SOUNDNESS" in errors) == (0, False)
    assert "broken certificates: 0" in errors
    assert "an attack can show that a certificate is false, never that it is true" in errors
    rows = [line for line in out.splitlines() if "<= " in line and "truth" in line]
    assert [line.split()[1] for line in rows] == ["36/255", "72/255", "108/255", "255/255"]


# the command


def test_the_folder_explains_the_bundled_model(
    run_cli: Cli, source: Path, tmp_path: Path, sample_images: list[Path]
) -> None:
    own = own_test_set(tmp_path / "own", source / "samples")
    status, out, _ = run_cli(
        "evaluate",
        source / "samples" / "model.onnx",
        own,
        "--json",
        "--radii",
        "36/255,72/255",
        "--explain",
        tmp_path / "look",
        "--attack-images",
        "10",
    )
    summary = json.loads(out)
    found = summary["attack"]
    assert (status, found["broken_certificates"]) == (0, 0)
    with (tmp_path / "look" / "attack.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert (found["images"], found["attacked"]) == (10, sum(row["correct"] == "1" for row in rows))
    for entry, radius in zip(found["sandwich"], (36, 72), strict=True):
        certified = sum(float(row["radius_255"]) > radius for row in rows)
        assert entry["certified"] == certified <= entry["under_attack"]
    assert 1 < found["median_ratio"] < 3
    assert len(rows) == 10
    for row in rows:
        assert (row["ratio"] != "") == (row["correct"] == "1" and float(row["radius_255"]) > 0)
    names = {path.name for path in (tmp_path / "look").glob("*.png")}
    assert {"sandwich.png", "01-largest-radius.png", "05-smallest-ratio.png"} <= names
    with Image.open(tmp_path / "look" / "01-largest-radius.png") as picture:
        assert picture.width > 800
        assert "certified: " in picture.info["Title"]


def test_chosen_images_are_drawn_and_no_others(
    run_cli: Cli, trained: FrozenNetwork, data: Path, tmp_path: Path
) -> None:
    engine = write_engine(trained, trained, tmp_path / "honest.onnx")
    chosen = sorted((data / "test").glob("*/*.png"))[3]
    look = tmp_path / "look"
    arguments = ("evaluate", engine, data, "--explain", look, "--explain-image", chosen.name)
    assert run_cli(*arguments, "--radii", "0.1", "-q")[0] == 0
    assert {path.name for path in look.glob("*.png")} == {"sandwich.png", "01-chosen.png"}


def test_options_of_attacks_ask_for_one(
    run_cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("evaluate", source / "samples" / "model.onnx", tmp_path)
    for options, told in (
        (("--attack-images", "5"), "--attack-images needs --attack"),
        (("--attack", "--attack-images", "0"), "must be at least 1"),
        (("--explain-image", "cat.png", "--attack"), "--explain-image needs --explain DIR"),
    ):
        status, _, errors = run_cli(*command, *options)
        assert (status, told in errors) == (2, True), errors
    for option, module, extra in (
        ("--auto-attack", "pyautoattack", "attack"),
        ("--attack", "torch", "train"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        status, out, errors = run_cli(*command, option)
        assert (status, out, f"pip install 'lipdeploy[{extra}]'" in errors) == (1, "", True)


def counted(items: list[Attacked]) -> Sandwich:
    sandwich = Sandwich()
    for item in items:
        sandwich.add(item)
    return sandwich
