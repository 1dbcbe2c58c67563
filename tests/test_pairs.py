"""`lipdeploy check-pair`: exact distances against a certificate."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipdeploy.errors import ImageError
from lipdeploy.pairs import Pair, check_pair
from lipdeploy.prediction import Certificate, Prediction
from lipdeploy.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(source: Path) -> Predictor:
    return Predictor(source / "samples/model.onnx")


def changed(path: Path, by: int, count: int, target: Path) -> Path:
    """The image with `count` values moved by `by`, away from the ends of their range."""
    pixels = np.array(Image.open(path).convert("RGB"))
    flat = pixels.reshape(-1)
    chosen = np.nonzero((flat > 20) & (flat < 235))[0][:count]
    flat[chosen] += by
    Image.fromarray(pixels).save(target)
    return target


def as_png(path: Path, target: Path) -> Path:
    Image.open(path).convert("RGB").save(target)
    return target


def test_a_small_change_is_covered_and_a_large_one_is_not(
    source: Path, tmp_path: Path, predictor: Predictor
) -> None:
    original = as_png(source / "samples/cat-0000.jpg", tmp_path / "a.png")
    near = changed(original, 1, 400, tmp_path / "b.png")
    far = changed(original, 5, 400, tmp_path / "c.png")
    pair = check_pair(predictor, original, near)
    assert (pair.squared_distance, pair.squared_file_distance) == (400, 400)
    assert pair.is_covered
    assert pair.is_covered_in_file
    assert pair.distance_255 == 20
    assert not pair.contradicts
    pair = check_pair(predictor, original, far)
    assert pair.squared_distance == 10_000
    assert not pair.is_covered
    assert not pair.is_covered_in_file


def test_images_of_other_sizes_are_compared_at_the_input(
    tmp_path: Path, predictor: Predictor
) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(60, 200, (48, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:40, :40]).save(tmp_path / "b.png")
    Image.fromarray(pixels).convert("L").save(tmp_path / "c.png")
    assert (
        check_pair(predictor, tmp_path / "a.png", tmp_path / "b.png").squared_file_distance is None
    )
    grey = check_pair(predictor, tmp_path / "a.png", tmp_path / "c.png")
    assert grey.is_covered_in_file is None


def prediction(class_index: int, radius_255: float, guarantee: str) -> Prediction:
    budget = int(radius_255**2)
    certificate = Certificate(
        radius_255 / 255, radius_255, radius_255 / 255, budget, guarantee, (), None
    )
    return Prediction("x", str(class_index), class_index, (0.0,), certificate)


@pytest.mark.parametrize("guarantee", ["program", "network"])
def test_answers_that_contradict_the_guarantee_are_noticed(guarantee: str) -> None:
    first = prediction(0, 5.0, guarantee)
    same, other = prediction(0, 1.0, guarantee), prediction(1, 1.0, guarantee)
    without = prediction(1, 0.0, guarantee)
    assert not Pair(first, same, Fraction(9), None).contradicts
    assert not Pair(first, other, Fraction(36), None).contradicts
    assert Pair(first, other, Fraction(9), None).contradicts
    assert Pair(first, without, Fraction(9), None).contradicts == (guarantee == "program")
    assert not Pair(first, same, Fraction(25), None).is_covered


def test_the_command(
    source: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    model = str(source / "samples/model.onnx")
    original = as_png(source / "samples/cat-0000.jpg", tmp_path / "a.png")
    near = changed(original, 1, 4, tmp_path / "b.png")
    status, out, err = run_cli("check-pair", str(original), str(near), "--model", model, "--json")
    row = json.loads(out)
    assert status == 0
    assert row["covered"]
    assert row["squared_file_distance"] == 4
    assert row["guarantee"] == "program"
    other = str(source / "samples/ship-0000.jpg")
    status, out, err = run_cli("check-pair", str(original), other, "--model", model)
    assert status == 3
    assert "not covered" in out
    status, out, err = run_cli(
        "check-pair", str(original), str(tmp_path / "no.png"), "--model", model
    )
    assert status == 1
    assert "no.png: no such file" in err


def test_a_saved_input_is_taken_as_is(source: Path, tmp_path: Path, predictor: Predictor) -> None:
    original = as_png(source / "samples/cat-0000.jpg", tmp_path / "a.png")
    pixels = np.asarray(Image.open(original)).transpose(2, 0, 1).astype(np.float32)
    pixels[0, 0, 0] += 0.25 if pixels[0, 0, 0] < 255 else -0.25
    np.save(tmp_path / "b.npy", pixels)
    pair = check_pair(predictor, original, tmp_path / "b.npy")
    assert pair.squared_distance == Fraction(1, 16)
    assert pair.squared_file_distance is None
    assert pair.is_covered
    assert pair.second.path == str(tmp_path / "b.npy")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (np.zeros((3, 32, 32)), "array of float64"),
        (np.zeros((3, 8, 8), np.float32), r"with shape \(3, 8, 8\); expected float32"),
        (np.full((3, 32, 32), np.nan, np.float32), "from 0 to 255"),
        (np.full((3, 32, 32), 256, np.float32), "from 0 to 255"),
        (np.array([{}]), "not a readable array"),
        (None, "not a readable array"),
    ],
)
def test_other_arrays_are_no_inputs(
    tmp_path: Path, predictor: Predictor, content: np.ndarray | None, told: str
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((3, 32, 32), np.float32) if content is None else content)
    if content is None:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ImageError, match=told):
        check_pair(predictor, path, path)
