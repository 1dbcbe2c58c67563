"""Classes, mistakes, quantiles, calibration and intervals, against counting by hand."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipdeploy.bootstrap import difference_interval, share_interval
from lipdeploy.breakdown import (
    by_class,
    calibration,
    calibration_error,
    equal_change_lower,
    extremes,
    mistakes,
    radius_quantiles,
    wrong_and_certified,
)
from lipdeploy.comparison import paired_differences
from lipdeploy.evaluation import Evaluation, Outcome
from lipdeploy.prediction import Certificate, Failure, Prediction

CLASSES = ("ant", "bee", "cow")
Made = tuple[int, int, float]

answers = st.lists(
    st.tuples(st.integers(0, 2), st.integers(-1, 2), st.floats(0, 2)), min_size=1, max_size=40
)


def outcome(truth: int, answer: int, radius: float, logits: tuple[float, ...] = ()) -> Outcome:
    if answer < 0:
        return Outcome(CLASSES[truth], Failure("a", "broken"))
    certificate = Certificate(radius, 255 * radius, None, None, "network", (), None)
    made = Prediction("a", CLASSES[answer], answer, logits, certificate)
    return Outcome(CLASSES[truth], made)


def evaluated(made: list[Made]) -> Evaluation:
    evaluation = Evaluation(classes=CLASSES)
    for truth, answer, radius in made:
        evaluation.add(outcome(truth, answer, radius))
    return evaluation


@given(answers)
def test_classes_add_up_to_the_whole(made: list[Made]) -> None:
    evaluation = evaluated(made)
    radii = (Fraction(36, 255), Fraction(1))
    rows = by_class(evaluation, radii)
    assert [row.name for row in rows] == list(CLASSES)
    assert sum(row.images for row in rows) == evaluation.images
    assert sum(row.correct for row in rows) == evaluation.correct
    for index, radius in enumerate(radii):
        assert sum(row.certified[index] for row in rows) == evaluation.certified(radius)
    total = sum(row.images * row.average_radius for row in rows)
    assert total == pytest.approx(evaluation.images * evaluation.average_certified_radius)
    for truth, row in enumerate(rows):
        right = [r for t, a, r in made if t == truth == a]
        mean = sum(right) / len(right) if right else 0
        assert row.mean_correct_radius == pytest.approx(mean)


@given(answers)
def test_mistakes_are_those_that_were_made(made: list[Made]) -> None:
    evaluation = evaluated(made)
    wrong = [(t, a, r) for t, a, r in made if a not in (-1, t)]
    found = {(row.true_class, row.predicted): row for row in mistakes(evaluation)}
    counted = Counter((CLASSES[t], CLASSES[a]) for t, a, _ in wrong)
    assert {pair: row.images for pair, row in found.items()} == counted
    for (truth, answer), row in found.items():
        radii = [r for t, a, r in wrong if (CLASSES[t], CLASSES[a]) == (truth, answer)]
        assert row.certified == sum(r > 0 for r in radii)
        assert row.largest_radius == max(radii)
    images = [row.images for row in mistakes(evaluation)]
    assert images == sorted(images, reverse=True)
    assert wrong_and_certified(evaluation) == sum(r > 0 for _, _, r in wrong)


@given(answers)
def test_quantiles_are_radii_of_images_that_so_many_do_not_exceed(made: list[Made]) -> None:
    right = sorted(r for t, a, r in made if t == a)
    found = radius_quantiles(evaluated(made))
    assert bool(found) == bool(right)
    for quantile, radius in found:
        assert radius == right[math.floor(float(quantile) * (len(right) - 1))]


@given(answers)
def test_extremes_are_the_ends_of_the_order(made: list[Made]) -> None:
    found = extremes(evaluated(made), 3)
    right = sorted(r for t, a, r in made if t == a)
    wrong = sorted((r for t, a, r in made if a not in (-1, t)), reverse=True)
    assert [made[index][2] for index in found.largest] == right[::-1][:3]
    assert [made[index][2] for index in found.smallest] == right[:3]
    assert [made[index][2] for index in found.wrong] == wrong[:3]


@given(st.fractions(0, 1000), st.integers(1, 10**6))
def test_an_equal_change_is_never_larger_than_the_radius(radius: Fraction, numbers: int) -> None:
    change = Fraction(equal_change_lower(radius, numbers))
    assert change**2 * numbers <= radius**2
    assert float(change) == pytest.approx(float(radius) / math.sqrt(numbers))


def test_confidence_is_the_softmax_of_the_logits() -> None:
    logits = (1.0, 3.0, -2.0)
    weights = np.exp(logits)
    assert outcome(0, 1, 0.1, logits).confidence == pytest.approx(max(weights) / sum(weights))
    assert outcome(0, 1, 0.1, (5000.0, -5000.0, 0.0)).confidence == 1
    assert outcome(0, -1, 0.0).confidence == 0


def test_calibration_compares_confidence_with_the_share_of_right_answers() -> None:
    evaluation = Evaluation(classes=CLASSES)
    sure, unsure = (50.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    for answer, logits in ((0, sure), (0, sure), (1, sure), (0, unsure), (-1, unsure)):
        evaluation.add(outcome(0, answer, 0.1, logits))
    low, high = calibration(evaluation)
    assert (low.images, low.accuracy, high.images) == (1, 1, 3)
    assert low.low < low.confidence <= low.high
    assert low.confidence == pytest.approx(1 / 3)
    assert high.confidence == pytest.approx(1)
    assert high.accuracy == pytest.approx(2 / 3)
    expected = (1 * (1 - 1 / 3) + 3 * (1 - 2 / 3)) / 4
    assert calibration_error([low, high]) == pytest.approx(expected)
    assert calibration_error([]) == 0


@pytest.mark.parametrize(("count", "total"), [(3, 10), (70, 100), (5575, 8000)])
def test_an_interval_is_that_of_resampled_images(count: int, total: int) -> None:
    """The quick way, binomial numbers, agrees with drawing images one by one."""
    generator = np.random.default_rng(1)
    images = np.arange(total) < count
    shares = [images[generator.integers(0, total, total)].mean() for _ in range(2000)]
    slow = np.quantile(shares, (0.025, 0.975))
    found = share_interval(count, total)
    # Ends of 2,000 resamples scatter by a few hundredths of the interval.
    assert found == pytest.approx(tuple(slow), abs=0.15 * (slow[1] - slow[0]))
    assert found[0] <= count / total <= found[1]
    assert found == share_interval(count, total)


def test_intervals_cover_as_often_as_they_say() -> None:
    """Of 300 test sets drawn with share 0.6, about 95 % have an interval that holds it."""
    drawn = np.random.default_rng(2).binomial(500, 0.6, 300)
    covered = sum(low <= 0.6 <= high for low, high in (share_interval(int(n), 500) for n in drawn))
    assert 0.91 <= covered / 300 <= 0.99


def test_paired_intervals_are_narrow_where_two_models_agree() -> None:
    found = difference_interval(30, 10, 1000)
    assert found[0] < 0.02 < found[1]
    alone = share_interval(700, 1000)
    assert found[1] - found[0] < alone[1] - alone[0]
    assert difference_interval(0, 0, 10) == (0, 0)


@given(answers, st.data())
def test_differences_are_those_of_the_shares(made: list[Made], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.tuples(st.integers(-1, 2), st.floats(0, 2)), min_size=len(made)))
    other_made = [(t, a, r) for (t, _, _), (a, r) in zip(made, others, strict=False)]
    this, other = evaluated(made), evaluated(other_made)
    clean, certified = paired_differences(this, other, [Fraction(1, 2)])
    assert clean.difference == pytest.approx(this.clean_accuracy - other.clean_accuracy)
    half = Fraction(1, 2)
    expected = this.certified_accuracy(half) - other.certified_accuracy(half)
    assert certified.difference == pytest.approx(expected)
    assert certified.only_this - certified.only_other == this.certified(half) - other.certified(
        half
    )
