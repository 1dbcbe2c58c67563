import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from lipdeploy.errors import BoundError
from lipdeploy.heads import LinearHead
from lipdeploy.mlp_head import MlpHead, curvature_upper, lipschitz_upper

SEEDS = st.integers(0, 2**32 - 1)


def linear_head(seed: int, classes: int = 4, features: int = 6) -> LinearHead:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(classes, features)).astype(np.float32)
    return LinearHead(weight, generator.normal(size=classes).astype(np.float32))


def mlp_head(seed: int, classes: int = 3, features: int = 5, hidden: int = 7) -> MlpHead:
    generator = np.random.default_rng(seed)
    arrays = [
        generator.normal(size=shape).astype(np.float32)
        for shape in [(hidden, features), (hidden,), (classes, hidden), (classes,)]
    ]
    return MlpHead.proven(*arrays)


@settings(max_examples=50)
@given(SEEDS, st.integers(2, 6), st.integers(-8, 8))
def test_linear_radii_are_the_exact_minimum_over_all_rivals(
    seed: int, classes: int, exponent: int
) -> None:
    head = linear_head(seed, classes)
    features = np.random.default_rng(seed + 1).normal(size=(3, 6)) * 10.0**exponent
    labels = head.logits(features).argmax(axis=1)
    radii = head.radii_lower(features, labels)
    with mp.workdps(50):
        for z, label, radius in zip(features, labels, radii, strict=True):
            w = [[mpf(float(v)) for v in row] for row in head.weight]
            logits = [
                mp.fdot(row, [mpf(v) for v in z.tolist()]) + mpf(float(b))
                for row, b in zip(w, head.bias, strict=True)
            ]
            truth = min(
                (logits[label] - logits[j])
                / mp.sqrt(mp.fsum((p - q) ** 2 for p, q in zip(w[label], w[j], strict=True)))
                for j in range(classes)
                if j != label
            )
            assert mpf(radius) <= truth
            size = 1 + truth + mp.norm([mpf(v) for v in z.tolist()])
            assert mpf(radius) >= truth - mpf("2e-12") * size


@pytest.mark.parametrize("make", [linear_head, mlp_head])
def test_a_label_that_does_not_win_has_radius_zero(make: object) -> None:
    head = make(0)
    features = np.random.default_rng(1).normal(size=(8, head.features))
    logits = head.logits(features)
    for label in range(head.classes):
        radii = head.radii_lower(features, np.full(8, label))
        assert np.all((radii > 0) <= (logits.argmax(axis=1) == label))


def test_ties_have_radius_zero() -> None:
    head = LinearHead(np.eye(3, dtype=np.float32), np.zeros(3, dtype=np.float32))
    assert head.radii_lower(np.array([[1.0, 1.0, 0.0]]), np.array([0]))[0] == 0


@pytest.mark.parametrize("make", [LinearHead, None], ids=["linear", "mlp"])
def test_ties_that_rounding_breaks_have_radius_zero(make: type[LinearHead] | None) -> None:
    """Rows with the same entries in another order tie exactly at a constant vector.

    Their computed logits differ by rounding in most cases, so a head that does not count its own
    rounding would certify one of them.
    """
    generator, broken = np.random.default_rng(0), 0
    for _ in range(50):
        row = generator.normal(size=40)
        weight = np.stack([row, generator.permutation(row)])
        zeros = np.zeros(2)
        if make is None:
            flat, ones = np.zeros((40, 3)), np.ones(40)
            head = MlpHead(flat, ones, weight, zeros, np.zeros((2, 2)), np.zeros((2, 2)))
        else:
            head = LinearHead(weight, zeros)
        features = np.ones((1, head.features))
        label = int(head.logits(features).argmax())
        broken += head.logits(features)[0, label] != head.logits(features)[0, 1 - label]
        assert head.radii_lower(features, np.array([label]))[0] == 0
    assert broken >= 10


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_constants_that_are_no_bounds_are_refused(bad: float) -> None:
    good, wrong = np.ones((2, 2)), np.full((2, 2), bad)
    for constants in ([wrong, good], [good, wrong]):
        with pytest.raises(BoundError, match="negative or not finite"):
            MlpHead(np.eye(2), np.ones(2), np.eye(2), np.ones(2), *constants)


def test_identical_rows_have_radius_zero() -> None:
    head = LinearHead(np.ones((2, 3), dtype=np.float32), np.zeros(2, dtype=np.float32))
    assert head.radii_lower(np.ones((1, 3)), np.array([0]))[0] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("make", [linear_head, mlp_head])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_features_that_are_not_finite_certify_nothing(make: object, bad: float) -> None:
    head = make(0)
    features = np.zeros((1, head.features))
    features[0, 0] = bad
    for label in range(head.classes):
        assert head.radii_lower(features, np.array([label]))[0] == 0


def test_the_last_of_many_rivals_counts() -> None:
    """Certifying against the first nine rivals only would be far off here."""
    weight = np.eye(100, dtype=np.float32)
    features = np.zeros((1, 100))
    features[0, 0], features[0, 99] = 1.0, 0.999
    head = LinearHead(weight, np.zeros(100, dtype=np.float32))
    assert head.radii_lower(features, np.array([0]))[0] == pytest.approx(0.001 / 2**0.5, rel=1e-6)


@settings(max_examples=30)
@given(SEEDS)
def test_the_curvature_bounds_the_hessian(seed: int) -> None:
    head = mlp_head(seed)
    generator = np.random.default_rng(seed)
    first, bias = head.hidden_weight.astype(float), head.hidden_bias.astype(float)
    for _ in range(5):
        z = generator.normal(size=5) * 3
        slope = 1 / (1 + np.exp(-(first @ z + bias)))
        for y in range(3):
            for j in range(3):
                a = (head.weight[y] - head.weight[j]).astype(float)
                hessian = first.T @ np.diag(a * slope * (1 - slope)) @ first
                lowest = np.linalg.eigvalsh(hessian)[0]
                assert lowest >= -head.curvature[y, j] - 1e-12


@settings(max_examples=40)
@given(SEEDS, st.floats(0.1, 20))
def test_no_point_in_the_mlp_ball_changes_the_class(seed: int, scale: float) -> None:
    """Random points and the straight line downhill, on the sphere of the certified radius."""
    head = mlp_head(seed)
    generator = np.random.default_rng(seed + 1)
    z = generator.normal(size=(1, 5)) * scale
    label = int(head.logits(z).argmax())
    radius = float(head.radii_lower(z, np.array([label]))[0])
    directions = generator.normal(size=(200, 5))
    first = head.hidden_weight.astype(float)
    slope = 1 / (1 + np.exp(-(z[0] @ first.T + head.hidden_bias)))
    downhill = ((head.weight - head.weight[label]) * slope) @ first
    directions = np.concatenate([directions, downhill[np.arange(3) != label]])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    logits = head.logits(z + radius * directions)
    rivals = np.delete(logits, label, axis=1).max(axis=1)
    assert np.all(logits[:, label] >= rivals - 1e-9 * (1 + np.abs(rivals)))


def test_curvature_from_power_iteration_would_be_wrong_here() -> None:
    """W1 = [A; -A], a = -200: a power-iteration constant gives 25.185, the class flips at 25.121.

    Two classes, logit difference g(z) = -200 * sum softplus(+-A z) + c with g(0) = 50. Along the
    top singular vector v, g(r v) is known in closed form; the certified radius must stay below the
    flip.
    """
    a = 0.02 * np.random.default_rng(0).normal(size=(1024, 1024)) / 32
    first = np.concatenate([a, -a])
    weight = np.stack([np.full(2048, -200.0), np.zeros(2048)])
    offset = 50 + 200 * 2048 * np.log(2)
    curvature, lipschitz = curvature_upper(first, weight), lipschitz_upper(first, weight)
    head = MlpHead(first, np.zeros(2048), weight, np.array([offset, 0.0]), curvature, lipschitz)
    radius = float(head.radii_lower(np.zeros((1, 1024)), np.array([0]))[0])
    top = np.linalg.svd(a)[2][0]
    margins = [np.diff(head.logits(r * top[None]))[0, 0] for r in (radius, radius * 1.02)]
    assert margins[0] <= 0 < margins[1]
    truth = np.linalg.norm(a, 2) ** 2 * 2 * 200 / 4
    assert 0 <= curvature[0, 1] / truth - 1 < 1e-6


@pytest.mark.parametrize("classes", [20, 21])
def test_many_classes_share_one_constant_that_is_no_smaller(classes: int) -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(6, 4)), generator.normal(size=(classes, 6))
    curvature = curvature_upper(first, second)
    for y, j in [(0, 1), (5, 19), (19, 0)]:
        negative = np.maximum(second[j] - second[y], 0)
        truth = np.linalg.norm(np.sqrt(negative / 4)[:, None] * first, 2) ** 2
        assert curvature[y, j] >= truth
