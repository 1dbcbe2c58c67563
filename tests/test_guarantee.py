"""The fast part of `make soundness`: every check, every mutation's own check, a few attacks."""

import json

import numpy as np
import pytest
from soundness import __main__ as suite
from soundness import checks, exhaustive, mutations, tightness
from soundness.attacks import attack_case
from soundness.mutations import MUTATIONS
from soundness.networks import cases

# Check by check, the faults that it finds, as `make soundness` says.
FOUND_BY: dict[str, tuple[str, ...]] = {
    "norms_are_above_the_truth_and_tight": (
        "norms from power iteration",
        "|W| bounded by W",
    ),
    "a_zero_padded_convolution_is_bounded_on_a_larger_circle": ("grid too small for zero padding",),
    "curvature_is_above_the_truth_and_tight": (
        "curvature halved",
        "curvature from power iteration",
    ),
    "a_descent_that_starts_the_wrong_way_certifies_no_more": ("multiplier below the curvature",),
    "linear_radii_are_exact_over_all_rivals": (
        "nine rivals, linear head",
        "slack ignored, linear head",
        "radii rounded up",
    ),
    "mlp_radii_survive_descent_in_feature_space": (
        "nine rivals, MLP head",
        "slack ignored, MLP head",
    ),
    "an_engine_that_errs_loses_its_network_radius": ("e dropped, network",),
    "no_swing_flips_a_certified_program": (
        "e dropped, program",
        "e on the ball dropped",
        "e at the centre only",
        "the head's arithmetic dropped",
    ),
    "sums_err_as_much_as_their_bound_allows": (
        "u halved",
        "sqrt(n) instead of n",
        "same order: one rounding a sum",
        "blocked: one block's error",
    ),
    "what_runs_is_what_was_certified": (
        "TF32 left on",
        "weights rounded after certification",
    ),
    "the_radius_in_the_graph_is_never_above_the_host": ("radius in the graph without errors",),
    "budgets_are_exact": ("budget one too large",),
    "a_radius_in_the_file_moves_the_input_by_no_more": (
        "resize taken as 1-Lipschitz",
        "resize error dropped",
    ),
    "attacks_fail_inside_and_succeed_just_outside": ("Lipschitz bound halved",),
    "pooling_errs_no_more_than_its_bound_allows": ("pooling not counted",),
}


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_the_check_holds(check: checks.Check) -> None:
    check()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_mutation_is_killed(mutation: object) -> None:
    (name,) = [check for check, faults in FOUND_BY.items() if mutation.name in faults]
    with mutation.applied(), pytest.raises(AssertionError):
        getattr(checks, name)()


@pytest.mark.parametrize("index", range(0, 31, 3))
def test_no_attack_inside_a_certificate_succeeds(index: int) -> None:
    case = cases()[index]
    tally = attack_case(case, 60, index)
    assert tally.violations == tally.graph_above_host == 0


def test_there_are_enough_networks_of_every_kind() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names)) >= 20
    for word in ("linear", "mlp", "circular", "zero", "float32", "float64", "trained", "1e6"):
        assert any(word in name for name in names), word


def test_every_whole_number_vector_in_a_ball_is_listed_once() -> None:
    """Against the number of representations as a sum of 12 squares: 1, 24, 264, 1760, ..."""
    everywhere = exhaustive.moves(3)
    counts = np.bincount((everywhere**2).sum(axis=1))
    assert counts.tolist() == [1, 24, 264, 1760]
    assert len(np.unique(everywhere, axis=0)) == len(everywhere)


def test_tight_radii_are_near_the_best_attack() -> None:
    closed, tight = tightness.ratios(0)
    assert np.median(tight) >= 0.98
    assert np.all(tight >= closed)


def test_the_last_line_of_the_suite_is_one_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a short run, on what the tests above have made."""
    some = {"QUICK_ATTACKS": 300, "QUICK_HEADS": 1, "QUICK_IMAGES": 2, "CHECKS": checks.CHECKS[:3]}
    for name, value in some.items():
        monkeypatch.setattr(suite, name, value)
    monkeypatch.setattr(suite, "cases", lambda: cases()[::5])
    monkeypatch.setattr(mutations, "MUTATIONS", MUTATIONS[:2])
    monkeypatch.setattr("sys.argv", ["soundness", "--quick"])
    assert suite.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last.keys() == {"attacks", "violations", "mutations", "mutations_killed"}
    assert (last["violations"], last["mutations"], last["mutations_killed"]) == (0, 2, 2)
    assert last["attacks"] > 200
