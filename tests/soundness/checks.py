"""What must be true of every bound, on cases where a wrong one shows.

Each check takes nothing and raises AssertionError; together they are what the mutations of
`soundness.mutations` must not survive.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from helpers import make_network, plan_of, random_pixels
from mpmath import mp, mpf
from onnx import numpy_helper

from lipdeploy import bounds, heads, mlp_head
from lipdeploy.artifact import REFERENCE
from lipdeploy.certificate import Answers, Certifier, file_radius, integer_budget
from lipdeploy.engine_error import distances_upper
from lipdeploy.exporters.freeze import freeze
from lipdeploy.exporters.onnx_file import served_bytes
from lipdeploy.exporters.onnx_probe import keeps_order, keeps_precision
from lipdeploy.exporters.plan import FormChoice
from lipdeploy.exporters.verify import verify
from lipdeploy.resize import linear_resize
from lipdeploy.rounding import ACCUMULATIONS
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.taylor import TaylorConv
from soundness import exhaustive, worst_cases
from soundness.attacks import attack_case
from soundness.networks import Case, linear_network
from soundness.worst_cases import engine_of

Check = Callable[[], None]
SCALES = (1e-150, 1e-20, 1.0, 1e20, 1e150)


def exact_norm(matrix: np.ndarray) -> mpf:
    """Spectral norm with 50 digits."""
    with mp.workdps(50):
        return max(mp.svd_r(mp.matrix(matrix.astype(float).tolist()), compute_uv=False))


def norms_are_above_the_truth_and_tight() -> None:
    """Both proofs of a norm, and the one of |W|, against 50 digits at all scales."""
    generator = np.random.default_rng(0)
    for scale in SCALES:
        for shape in ((1, 1), (3, 5), (6, 4), (5, 5)):
            matrix = generator.normal(size=shape) * scale
            rounded = np.linalg.qr(generator.normal(size=(6, 6)))[0].astype(np.float16)
            orthogonal = rounded.astype(np.float64) * scale
            for w, tolerance in ((matrix, 1e-2), (orthogonal, 1e-8)):
                _is_tight(bounds.norm_upper(w), exact_norm(w), 1e-9)
                _is_tight(float(bounds.residual_norms_upper(w)), exact_norm(w), tolerance)
                _is_tight(float(bounds.absolute_norms_upper(w)), exact_norm(np.abs(w)), 1e-2)
    for w in _extreme_matrices():
        assert bounds.norm_upper(w) >= exact_norm(w)
        assert float(bounds.residual_norms_upper(w)) >= exact_norm(w)
        assert float(bounds.absolute_norms_upper(w)) >= exact_norm(np.abs(w))


def _is_tight(bound: float, truth: mpf, tolerance: float) -> None:
    assert mpf(bound) >= truth, "a bound below the truth"
    assert mpf(bound) <= truth * (1 + mpf(tolerance)), "a bound that is not tight"


def _extreme_matrices() -> list[np.ndarray]:
    near_ties = np.diag([1.0, 1.0 - 2**-53, 1.0 - 2**-52])
    return [
        np.zeros((3, 3)),
        np.full((4, 2), 1e-300),
        near_ties,
        np.array([[1.0, 1e-200], [0.0, 1.0]]),
        np.full((5, 5), 2.0**-1074),
        np.array([[1.0, -1.0], [1.0, 1.0]]),
    ]


def complex_norms_are_those_of_their_embedding() -> None:
    generator = np.random.default_rng(1)
    for _ in range(5):
        a, b = generator.normal(size=(2, 4, 3))
        truth = exact_norm(np.block([[a, b], [-b, a]]))
        _is_tight(float(bounds.residual_norms_upper(a + 1j * b)), truth, 1e-2)


def a_zero_padded_convolution_is_bounded_on_a_larger_circle() -> None:
    """On a circle of 2 points the taps at -1 and 1 cancel; with zero padding they do not."""
    kernel = np.zeros((9, 1, 1))
    kernel[3], kernel[5] = -1.0, 1.0
    assert TaylorConv(2, 1, 1, kernel, degree=8).skew_norm_upper >= 1


def curvature_is_above_the_truth_and_tight() -> None:
    """The largest of -d^T H d is attained where softplus'' is 1/4: all pre-activations 0."""
    for seed in range(4):
        generator = np.random.default_rng(seed)
        first, second = generator.normal(size=(6, 4)), generator.normal(size=(3, 6))
        found = mlp_head.curvature_upper(first, second)
        for y in range(3):
            for j in set(range(3)) - {y}:
                negative = np.maximum(second[j] - second[y], 0)
                truth = exact_norm(np.sqrt(negative / 4)[:, None] * first) ** 2
                _is_tight(found[y, j] * (1 + 1e-15), truth, 1e-9)


def linear_radii_are_exact_over_all_rivals() -> None:
    """Twelve classes, the last ones as near as the first, with and without slack."""
    for seed in range(4):
        generator = np.random.default_rng(seed)
        weight, bias = generator.normal(size=(12, 5)), generator.normal(size=12)
        head = heads.LinearHead(weight, bias)
        features = generator.normal(size=(30, 5)) * 3
        labels = head.logits(features).argmax(axis=1)
        for gap, slope in ((0.0, 0.0), (0.05, 0.2)):
            radii = head.radii_lower(features, labels, heads.Slack(gap, slope))
            for z, y, radius in zip(features, labels, radii, strict=True):
                truth = _linear_radius(weight, bias, z, int(y), gap, slope)
                assert Fraction(radius) <= max(truth, 0), "a radius above the exact one"
                assert radius >= float(truth) * (1 - 1e-9) - 1e-9, "a radius far below"


def _linear_radius(
    weight: np.ndarray, bias: np.ndarray, z: np.ndarray, y: int, gap: float, slope: float
) -> Fraction:
    """Smallest (margin - gap) / (distance + slope), the root rounded down at 40 digits."""
    radii = []
    point = [Fraction(v) for v in z.tolist()]
    rows = [[Fraction(v) for v in row] for row in weight.tolist()]
    logits = [
        sum((p * q for p, q in zip(row, point, strict=True)), Fraction(b))
        for row, b in zip(rows, bias.tolist(), strict=True)
    ]
    for j in set(range(len(rows))) - {y}:
        squared = sum((p - q) ** 2 for p, q in zip(rows[y], rows[j], strict=True))
        with mp.workdps(60):
            root = mp.sqrt(mpf(squared.numerator) / mpf(squared.denominator))
            distance = Fraction(str(mp.nstr(root, 45))) * (1 - Fraction(1, 10**40))
        radii.append((logits[y] - logits[j] - Fraction(gap)) / (distance + Fraction(slope)))
    return min(radii)


def mlp_radii_survive_descent_in_feature_space() -> None:
    """Twelve classes: no point of the sphere loses its lead; tight is never below closed."""
    for seed in range(3):
        head = _mlp_head(seed, classes=12)
        generator = np.random.default_rng(seed + 50)
        features = generator.normal(size=(60, head.features)) * 2
        labels = head.logits(features).argmax(axis=1)
        for slack in (heads.NO_SLACK, heads.Slack(0.02, 0.1)):
            closed = head.radii_lower(features, labels, slack)
            tight = head.radii_lower(features, labels, slack, tight=True)
            assert np.all(tight >= closed)
            lead = worst_lead(head, features, labels, tight * (1 - 1e-9))
            gap, slope = np.asarray(slack.gap), slack.slope
            assert np.all((lead >= gap + slope * tight - 1e-11) | (tight == 0)), "lead lost inside"


def worst_lead(
    head: mlp_head.MlpHead, features: np.ndarray, labels: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    """Smallest lead over all rivals found on spheres by the fixed-point iteration."""
    first, bias, second, _ = (w.astype(float) for w in list(head.weights().values())[:4])
    worst = np.full(len(features), np.inf)
    for rival in range(head.classes):
        difference = second[labels] - second[rival]
        delta = np.zeros_like(features)
        for _ in range(60):
            slopes = 0.5 * (1 + np.tanh(((features + delta) @ first.T + bias) / 2))
            gradient = (difference * slopes) @ first
            size = np.linalg.norm(gradient, axis=1, keepdims=True) + 1e-300
            delta = -radii[:, None] * gradient / size
        logits = head.logits(features + delta)
        lead = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0] - logits[:, rival]
        worst = np.where(labels == rival, worst, np.minimum(worst, lead))
    return worst


def _mlp_head(seed: int, classes: int) -> mlp_head.MlpHead:
    generator = np.random.default_rng(seed)
    shapes = [(9, 6), (9,), (classes, 9), (classes,)]
    return mlp_head.MlpHead.proven(*(generator.normal(size=s).astype(np.float32) for s in shapes))


def curvature_by_power_iteration_is_not_enough() -> None:
    """W1 = [A; -A], a = -200, z = 0: the gradient is 0 and the curvature decides.

    Along A's top singular vector the class flips at a known place; a constant from power iteration
    certifies beyond it (guarantee.md has the case with 1024 rows; here A is smaller and its top
    singular values are closer). Both kinds of radius must stop before it.
    """
    generator = np.random.default_rng(0)
    a = np.linalg.qr(generator.normal(size=(48, 48)))[0] * np.linspace(0.02, 0.0195, 48)[:, None]
    first = np.concatenate([a, -a])
    weight = np.stack([np.full(96, -200.0), np.zeros(96)])
    offset = np.array([5 + 200 * 96 * np.log(2), 0.0])
    head = mlp_head.MlpHead.proven(first, np.zeros(96), weight, offset)
    top = np.linalg.svd(a)[2][:1]
    for tight in (False, True):
        radius = head.radii_lower(np.zeros((1, 48)), np.array([0]), tight=tight)[0]
        margin = -np.diff(head.logits(radius * top))[0, 0]
        assert radius > 0
        assert margin >= -1e-9, "the class has flipped inside the radius"


def a_descent_that_starts_the_wrong_way_certifies_no_more() -> None:
    """One feature: g falls gently to the left and, beyond a hump, steeply to the right.

    The search of the tight radius goes left; only a multiplier of at least the curvature makes what
    it finds there say anything of the right.
    """
    first, bias = np.array([[8.0], [1.0]]), np.array([-8.0, 60.0])
    weight = np.array([[-3.0, 0.05], [0.0, 0.0]])
    head = mlp_head.MlpHead.proven(first, bias, weight, np.array([1.0 - 3.0, 0.0]))
    for z in (0.0, 0.3):
        for tight in (False, True):
            radius = head.radii_lower(np.array([[z]]), np.array([0]), tight=tight)[0]
            line = z + radius * np.linspace(-1, 1, 2001)[:, None]
            margins = -np.diff(head.logits(line), axis=1)
            assert radius > 0
            assert margins.min() >= -1e-9, "the class flips inside the radius"


def attacks_fail_inside_and_succeed_just_outside() -> None:
    """On networks whose Lipschitz bound is attained, and on one of each head."""
    for seed, accumulation in enumerate(ACCUMULATIONS):
        case = Case("linear", linear_network(seed), accumulation, is_exact=True)
        tally = attack_case(case, 200, seed)
        assert tally.violations == 0, f"{tally.violations} attacks succeed inside the radius"
        assert tally.flips_outside > tally.tried_outside / 2 > 10, "the radius is merely small"
    for seed, head in enumerate(("lln", "mlp")):
        network = freeze(make_network(seed, head=head).double()).stored_as("float32")
        tally = attack_case(Case(head, network, "blocked"), 100, seed)
        assert tally.attacks > 50
        assert tally.violations == 0, f"{tally.violations} attacks succeed inside the radius"


def sums_err_as_much_as_their_bound_allows() -> None:
    """Measured errors of an engine on the worst pattern, between half their bound and all of it."""
    for accumulation in ACCUMULATIONS:
        ratio = worst_cases.engine_error_ratio(worst_cases.swing_in_the_body(accumulation))
        assert ratio <= 1, f"{accumulation}: the engine errs by {ratio:.3f} of its bound"
        assert ratio >= 0.5, f"{accumulation}: the case is not the worst one ({ratio:.3f})"
    assert 0.5 <= worst_cases.engine_error_ratio(worst_cases.swing_through_two_layers()) <= 1
    assert 0.5 <= worst_cases.float64_error_ratio(64) <= 1


def pooling_errs_no_more_than_its_bound_allows() -> None:
    network, pixels = worst_cases.vanishing_squares()
    engine = engine_of(network, "blocked")
    features, _ = OnnxRuntime(engine.prepared, "cpu").run(pixels)
    exact = network.features(pixels.astype(np.float64))
    error = float(np.linalg.norm(features - exact))
    distances = distances_upper(pixels.astype(np.float64), network.centre)
    assert error > 0.004, "the case has lost its error"
    assert error <= engine.manifest.engine_errors.features(distances)[0]


def no_swing_flips_a_certified_program() -> None:
    """Two neighbours at which the engine errs in opposite directions, one of them certified."""
    for accumulation in ACCUMULATIONS:
        assert not worst_cases.program_fails(worst_cases.swing_in_the_body(accumulation))
        assert not worst_cases.program_fails(worst_cases.swing_in_the_head(accumulation))
    assert not worst_cases.program_fails(worst_cases.swing_through_two_layers())


def an_engine_that_errs_loses_its_network_radius() -> None:
    """Features moved in favour of the printed class: the distance to float64 is taken off."""
    network = freeze(make_network(0)).stored_as("float32")
    engine = engine_of(network, "blocked")
    pixels = random_pixels(6, 8)
    features = network.features(pixels)
    logits = network.head.logits(features)
    wrong = logits.argsort(axis=1)[:, -2]
    weight = network.head.weights()["weight"].astype(float)
    moved = features + 50 * (weight[wrong] - weight[logits.argmax(axis=1)])
    certifier = Certifier(network, engine.manifest)
    assert np.all(certifier.network_radii(Answers(pixels, moved, wrong)) == 0)


def errors_stay_below_their_bounds() -> None:
    """Every form, head and accumulation on inputs that were climbed to the largest error."""
    cases: list[tuple[str, FormChoice, str]] = [
        ("circular", "spectral", ""),
        ("circular", "spectral", "rows"),
        ("circular", "spectral", "vectors"),
        ("circular", "fused", ""),
        ("circular", "fused", "rows"),
        ("circular", "fused", "vectors"),
        ("circular", "dense", ""),
        ("zero", "dense", ""),
        ("zero", "taylor", ""),
    ]
    for seed, (padding, form, how) in enumerate(cases):
        trained = make_network(seed, padding=padding)
        network = freeze(trained, plan=plan_of(trained, form, how)).stored_as("float16")
        for accumulation in ACCUMULATIONS:
            engine = engine_of(network, accumulation)
            runtime = OnnxRuntime(engine.prepared, "cpu")
            pixels = _climb(runtime, network, seed)
            features, logits = runtime.run(pixels)
            exact = network.features(pixels.astype(np.float64))
            reached = distances_upper(pixels.astype(np.float64), network.centre)
            measured = np.linalg.norm(features - exact, axis=1)
            errors = engine.manifest.engine_errors
            slack = engine.manifest.reference_errors.features(reached)
            assert np.all(measured <= errors.features(reached) + slack)
            # An honest float32 engine is well inside; a sloppier one is not.
            assert np.max(measured / errors.features(reached)) < 0.5
            of_head = logits - network.head.logits(features)
            assert np.all(np.ptp(of_head, axis=1) <= errors.logits(reached))


def _climb(runtime: OnnxRuntime, network, seed: int) -> np.ndarray:  # noqa: ANN001
    """Permuted images, then random changes kept where they make the error larger."""
    generator = np.random.default_rng(seed)
    pixels = random_pixels(32, network.image_size, seed)
    pixels[16:] = generator.permutation(pixels[16:].reshape(16, -1), axis=1).reshape(16, 3, 8, 8)
    best = np.zeros(len(pixels))
    for _ in range(6):
        changed = pixels + generator.normal(size=pixels.shape) * 3
        changed = changed.astype(np.float32)
        features, _ = runtime.run(changed)
        errors = np.linalg.norm(features - network.features(changed.astype(np.float64)), axis=1)
        better = errors > best
        pixels[better], best = changed[better], np.maximum(best, errors)
    return pixels.astype(np.float32)


def the_radius_in_the_graph_is_never_above_the_host() -> None:
    for seed, head in enumerate(("linear", "mlp", "lln")):
        network = freeze(make_network(seed + 10, head=head)).stored_as("float32")
        for accumulation in ACCUMULATIONS:
            engine = engine_of(network, accumulation)
            runtime = OnnxRuntime(served_bytes(engine), "cpu")
            pixels = random_pixels(64, 8, seed).astype(np.float32)
            pixels[:4] *= 1e6
            pixels[4, 0, 0, 0] = np.nan
            features, logits = runtime.run(pixels)
            (radius,) = runtime.outputs(["radius"], {"pixels": pixels})
            assert radius[4] == 0
            answers = Answers(pixels.astype(float), features, logits.argmax(axis=1))
            certifier = Certifier(network, engine.manifest)
            host = certifier.program_radii(answers, engine.manifest.engine_errors) / 255
            assert np.all(radius <= host), "the engine's radius is above the host's"
            assert np.all(radius[host > 0.01] > 0), "the engine certifies nothing"


def what_runs_is_what_was_certified() -> None:
    """The weights that reach the runtime are the stored ones, and its products are float32's."""
    network = freeze(make_network(5)).stored_as("float32")
    engine = engine_of(network, "same-order")
    model = onnx.load_model_from_string(engine.prepared)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, weights in network.weights().items():
        if name in stored:
            assert np.array_equal(stored[name].ravel(), weights.ravel().astype(np.float32)), name
    runtime = OnnxRuntime(engine.prepared, "cpu")
    assert keeps_precision(runtime, engine.prepared, 3)
    assert keeps_order(runtime, engine.prepared, 3)


def whole_number_balls_hold_no_other_class() -> None:
    found = exhaustive.exhaust(images=4)
    assert found.certificates >= 8
    assert found.violations == 0, f"{found.violations} images inside a budget flip"
    assert found.sharp > 0, "no class flips just outside: the budgets are merely tiny"


def budgets_are_exact() -> None:
    for radius in (2.0**-9, 0.1, 36 / 255, 1.0, 1.7):
        squared = (255 * Fraction(radius)) ** 2
        budget = integer_budget(radius)
        assert budget < squared <= budget + 1


def a_radius_in_the_file_moves_the_input_by_no_more() -> None:
    """The worst change of a small picture that is enlarged, along the top singular vectors."""
    for height, width in ((5, 4), (4, 7), (8, 8), (13, 9)):
        resize = linear_resize(height, width, 8)
        radius = file_radius(10.0, 0.01, resize.norm_upper)
        worst = []
        for matrix in (resize.rows, resize.columns):
            worst.append(np.linalg.svd(matrix)[2][0])
        change = radius * np.outer(*worst)
        moved = resize.rows @ change @ resize.columns.T
        assert np.linalg.norm(moved) + 2 * 0.01 <= 10.0
        assert np.linalg.norm(moved) >= 9.9


def verify_accepts_what_export_writes() -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for head in ("lln", "mlp"):
            network = freeze(make_network(6, head=head)).stored_as("float16")
            path.write_bytes(engine_of(network, "same-order").data)
            failed = [c for c in verify(path) if c.passed is False and c.name != "preprocessing"]
            assert not failed, failed


def the_reference_is_as_precise_as_it_says() -> None:
    """float64 against longer numbers, through the whole network."""
    from test_certificate import in_long_double

    network = freeze(make_network(7)).stored_as("float32")
    engine = engine_of(network, "blocked")
    pixels = random_pixels(4, 8)
    exact = in_long_double(network, pixels)
    measured = np.sqrt(((network.features(pixels) - exact) ** 2).sum(axis=1)).astype(float)
    bound = engine.manifest.errors[REFERENCE.name].features(distances_upper(pixels, network.centre))
    assert np.all(measured <= bound)


CHECKS: tuple[Check, ...] = (
    norms_are_above_the_truth_and_tight,
    complex_norms_are_those_of_their_embedding,
    a_zero_padded_convolution_is_bounded_on_a_larger_circle,
    curvature_is_above_the_truth_and_tight,
    linear_radii_are_exact_over_all_rivals,
    mlp_radii_survive_descent_in_feature_space,
    curvature_by_power_iteration_is_not_enough,
    a_descent_that_starts_the_wrong_way_certifies_no_more,
    budgets_are_exact,
    a_radius_in_the_file_moves_the_input_by_no_more,
    what_runs_is_what_was_certified,
    sums_err_as_much_as_their_bound_allows,
    pooling_errs_no_more_than_its_bound_allows,
    no_swing_flips_a_certified_program,
    an_engine_that_errs_loses_its_network_radius,
    errors_stay_below_their_bounds,
    attacks_fail_inside_and_succeed_just_outside,
    the_radius_in_the_graph_is_never_above_the_host,
    the_reference_is_as_precise_as_it_says,
    whole_number_balls_hold_no_other_class,
    verify_accepts_what_export_writes,
)
