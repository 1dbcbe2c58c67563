"""Counting certificates and attacks beside each other."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipdeploy.attack_plots import FACTORS, magnification
from lipdeploy.prediction import Certificate, Failure, Prediction
from lipdeploy.report.attack import sandwich_summary, write_sandwich
from lipdeploy.report.console import Verbosity, set_verbosity
from lipdeploy.sandwich import Adversarial, Attacked, Gallery, Sandwich

PIXELS = np.zeros((3, 4, 4), dtype=np.float32)


def attacked(
    radius_255: float, distance_255: float | None, *, is_right: bool = True, path: str = "a"
) -> Attacked:
    certificate = Certificate(radius_255 / 255, radius_255, None, None, "network", (), None)
    result = Prediction(path, "cat" if is_right else "dog", 0, (), certificate)
    nearest = None if distance_255 is None else Adversarial(PIXELS, distance_255, 1, "x")
    return Attacked("cat", result, PIXELS, nearest if is_right else None)


SOUND = st.tuples(st.floats(0, 300), st.floats(1, 4), st.booleans(), st.booleans())


@given(st.lists(SOUND, min_size=1, max_size=20), st.integers(0, 400))
def test_certified_is_at_most_unbroken_at_every_radius(
    made: list[tuple[float, float, bool, bool]], at: int
) -> None:
    sandwich = Sandwich()
    for radius, factor, is_found, is_right in made:
        distance = math.nextafter(radius * factor, math.inf) if is_found else None
        sandwich.add(attacked(radius, distance, is_right=is_right))
    radius = Fraction(at, 255)
    right = sum(is_right for *_, is_right in made)
    low, high = sandwich.certified(radius), sandwich.under_attack(radius)
    assert low <= high <= sandwich.right == right
    assert sandwich.undecided(radius) == high - low
    steps, certified, unbroken = sandwich.curves()
    for step, low, high in zip(steps, certified, unbroken, strict=True):
        assert low == sandwich.certified(Fraction(step) / 255) / len(made)
        assert high == sandwich.under_attack(Fraction(step) / 255) / len(made)


def test_where_the_engine_may_flip_inside_of_the_ball_nothing_contradicts_itself() -> None:
    """Under *network* a flip with radius 0 at 20/255 leaves the certificate of 36/255 true."""
    sandwich = Sandwich()
    sandwich.add(attacked(36.0, 20.0))
    sandwich.add(attacked(10.0, 50.0))
    at = Fraction(30, 255)
    assert (sandwich.certified(at), sandwich.under_attack(at), sandwich.undecided(at)) == (1, 1, 1)
    sandwich = Sandwich()
    sandwich.add(attacked(36.0, 20.0))
    assert (sandwich.certified(at), sandwich.under_attack(at), sandwich.undecided(at)) == (1, 0, 0)


@pytest.mark.parametrize(("guarantee", "is_between"), [("program", True), ("network", False)])
def test_only_under_program_the_table_puts_the_truth_between(
    guarantee: str, is_between: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sandwich = Sandwich()
    sandwich.add(attacked(36.0, 50.0 if is_between else 20.0))
    set_verbosity(Verbosity.NORMAL)
    settings = {"attacks": ["x"], "seed": 0}
    radii = [Fraction(30, 255)]
    write_sandwich(sandwich_summary(sandwich, radii, guarantee, settings, [], 1.0))
    captured = capsys.readouterr()
    assert ("truth" in captured.out) == ("<=" in captured.out) == is_between
    (row,) = [line.split() for line in captured.out.splitlines() if "30/255" in line]
    assert row[-1] == "0"
    assert ("allows the engine another class" in captured.err) != is_between


def test_an_image_is_broken_at_its_distance_and_certified_below_its_radius() -> None:
    sandwich = Sandwich()
    sandwich.add(attacked(36.0, 72.0))
    for at, certified, unbroken in ((35, 1, 1), (36, 0, 1), (71, 0, 1), (72, 0, 0)):
        assert sandwich.certified(Fraction(at, 255)) == certified
        assert sandwich.under_attack(Fraction(at, 255)) == unbroken
    assert sandwich.median_ratio == sandwich.smallest_ratio == 2


def test_wrong_and_unreadable_images_are_broken_from_the_start() -> None:
    sandwich = Sandwich()
    sandwich.add(attacked(50.0, 60.0, is_right=False))
    sandwich.add(Attacked("cat", Failure("b", "broken")))
    assert (sandwich.images, sandwich.right, sandwich.compared) == (2, 0, 0)
    assert sandwich.under_attack(Fraction(0)) == sandwich.certified(Fraction(0)) == 0
    assert sandwich.median_ratio is None


def test_an_image_that_resists_is_never_broken_and_has_no_ratio() -> None:
    sandwich = Sandwich()
    sandwich.add(attacked(10.0, None))
    assert sandwich.under_attack(Fraction(1000)) == 1
    assert sandwich.compared == 0
    assert sandwich.curves()[2] == [1.0, 1.0]


def test_the_gallery_keeps_the_extremes() -> None:
    gallery = Gallery(each=1)
    for index, (radius, distance) in enumerate([(5, 20), (9, 10), (1, 3), (0, 8), (7, None)]):
        gallery.add(attacked(radius, distance, path=str(index)))
    assert [(reason, item.result.path) for reason, item in gallery.chosen()] == [
        ("largest radius", "1"),
        ("smallest radius", "2"),
        ("smallest ratio", "1"),
    ]


def test_the_gallery_keeps_what_is_asked_for() -> None:
    gallery = Gallery(["b.png"])
    for path in ("x/a.png", "x/b.png"):
        gallery.add(attacked(5, 6, path=path))
    assert [item.result.path for _, item in gallery.chosen()] == ["x/b.png"]


@pytest.mark.parametrize("largest", [0.01, 0.3, 3.0, 40.0, 127.0, 200.0])
def test_differences_are_magnified_as_far_as_they_fit(largest: float) -> None:
    factor = magnification(np.array([0.0, -largest]))
    assert factor * largest <= 127 or factor == 1
    larger = [f for f in FACTORS if f > factor]
    assert not larger or larger[0] * largest > 127
