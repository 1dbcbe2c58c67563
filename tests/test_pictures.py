"""What the pictures of docs/radius.md show is so."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from make_pictures import (
    DOCS,
    IMAGE,
    INSIDE,
    PICTURES,
    SAMPLES,
    Subject,
    changes,
    classes,
    draw_slice,
    leads,
    read_subject,
    rooms,
    slice_logits,
    unit,
)

from lipdeploy import Predictor
from lipdeploy.decimals import lower, upper

AXIS = np.linspace(-150, 150, 25)


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with Predictor(SAMPLES / "model.onnx") as predictor:
        yield read_subject(predictor, SAMPLES / IMAGE)


def test_no_other_class_lies_in_the_drawn_ball(subject: Subject) -> None:
    lead = leads(slice_logits(subject, AXIS))
    inside = np.hypot(*np.meshgrid(AXIS, AXIS)) < subject.radius
    assert inside.sum() > 20
    assert np.all(lead[subject.label][inside] > 0)
    assert len(np.unique(lead.argmax(axis=0))) >= 3


def test_the_found_image_is_of_another_class_and_outside(subject: Subject) -> None:
    assert classes(subject.predictor, subject.nearest[None])[0] != subject.label
    assert subject.distance > subject.radius


def test_no_way_leads_below_the_proven_line(subject: Subject) -> None:
    way = np.linspace(0, 2 * subject.distance, 9)
    directions = [subject.nearest - subject.pixels, subject.second - subject.pixels]
    directions += list(np.random.default_rng(1).normal(size=(4, *subject.pixels.shape)))
    for direction in directions:
        left = rooms(subject, subject.pixels + way[:, None, None, None] * unit(direction))
        assert np.all(left >= left[0] - way - 1e-9)
    assert rooms(subject, subject.nearest[None])[0] < 0


def test_every_drawn_change_is_just_inside_of_the_radius_and_changes_no_class(
    subject: Subject,
) -> None:
    for moved in changes(subject).values():
        # What the engine gets: float32.
        after = (subject.pixels + moved).astype(np.float32).astype(np.float64)
        length = np.linalg.norm(after - subject.pixels)
        assert length < subject.radius
        assert length == pytest.approx(INSIDE * subject.radius, rel=1e-5)
        assert after.min() >= 0
        assert after.max() <= 255
        assert classes(subject.predictor, after[None]) == subject.label


def test_what_the_page_says_of_the_drawn_changes_is_so(subject: Subject) -> None:
    text = " ".join((DOCS / "radius.md").read_text().split())
    everything, single, _ = changes(subject).values()
    steps, step = lower(np.abs(everything).min(), 2), lower(np.abs(single).max(), 1)
    assert np.abs(everything).min() == np.abs(everything).max() < 1
    assert f"each {INSIDE} of the radius long" in text
    assert f"All 3,072 numbers may change by {steps} steps of 255 at once" in text
    assert f"or a single one by {step}." in text
    assert np.count_nonzero(single) == 1
    rounded = np.rint(subject.pixels + everything) - subject.pixels
    assert set(np.abs(rounded).ravel()) == {1.0}
    assert f"{steps} steps are drawn as 1" in text


def test_the_numbers_of_the_page_are_those_of_the_model(subject: Subject) -> None:
    text = (DOCS / "radius.md").read_text()
    found = set(re.findall(r"([\d.]+)/255", text))
    margin = rooms(subject, subject.pixels[None])[0]
    known = {lower(subject.radius, 1), upper(subject.distance, 1), lower(margin, 1)}
    assert found == known
    assert f"samples/{IMAGE}" in text


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_there_and_on_the_page(name: str) -> None:
    assert (DOCS / name).is_file()
    assert f"]({name})" in (DOCS / "radius.md").read_text()


def test_the_slice_is_drawn_with_its_ball(subject: Subject, tmp_path: Path) -> None:
    figure = draw_slice(subject, steps=9)
    (circle,) = figure.axes[0].patches
    assert circle.radius == subject.radius
    figure.savefig(tmp_path / "slice.svg")
