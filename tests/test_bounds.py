import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from lipdeploy import bounds
from lipdeploy.bounds import (
    down,
    frobenius_upper,
    gamma,
    largest_eigenvalue_upper,
    norm_upper,
    norms_upper,
    residual_norms_upper,
    up,
)
from lipdeploy.errors import BoundError


def exact_norm(matrix: np.ndarray) -> mpf:
    """Spectral norm with 50 digits."""
    with mp.workdps(50):
        exact = mp.matrix(matrix.astype(float).tolist())
        return max(mp.svd_r(exact, compute_uv=False))


def matrices() -> st.SearchStrategy[np.ndarray]:
    def make(seed: int, rows: int, columns: int, exponent: int) -> np.ndarray:
        values = np.random.default_rng(seed).normal(size=(rows, columns))
        return values * 10.0**exponent

    sides = st.integers(1, 6)
    return st.builds(make, st.integers(0, 2**32 - 1), sides, sides, st.integers(-150, 150))


@settings(max_examples=60)
@given(matrices())
def test_the_norm_bound_is_above_the_truth_and_close(matrix: np.ndarray) -> None:
    truth = exact_norm(matrix)
    bound = norm_upper(matrix)
    assert mpf(bound) >= truth
    assert mpf(bound) <= truth * (1 + mpf("1e-9"))


@settings(max_examples=40)
@given(matrices())
def test_the_frobenius_bound_is_above_the_truth_and_close(matrix: np.ndarray) -> None:
    with mp.workdps(50):
        truth = mp.sqrt(mp.fsum(mpf(float(v)) ** 2 for v in matrix.flat))
        bound = mpf(float(frobenius_upper(matrix * 1e-20 if abs(matrix).max() > 1e100 else matrix)))
        scale = mpf("1e-20") if abs(matrix).max() > 1e100 else mpf(1)
        assert bound >= truth * scale * (1 - mpf("1e-15"))


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((3, 3)),
        np.full((4, 2), 1e-300),
        np.diag([1.0, 1.0 - 2**-53, 1.0 - 2**-52]),
        np.array([[1.0, 1e-200], [0.0, 1.0]]),
        np.full((5, 5), 2.0**-1074),
        np.array([[1.7e308]]),
    ],
    ids=["zero", "tiny", "near-ties", "graded", "denormal", "huge"],
)
def test_extreme_matrices_are_bounded(matrix: np.ndarray) -> None:
    assert mpf(norm_upper(matrix)) >= exact_norm(matrix)


@pytest.mark.parametrize("chunk", [1, 45, 1 << 18])
def test_stacks_are_bounded_one_by_one(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "CHUNK", chunk)
    stack = np.random.default_rng(0).normal(size=(2, 4, 3, 5))
    found = norms_upper(stack)
    assert found.shape == (2, 4)
    for index in np.ndindex(2, 4):
        assert 0 <= found[index] / np.linalg.norm(stack[index], 2) - 1 < 1e-9
    assert norms_upper(stack[:0]).shape == (0, 4)


def test_a_large_orthogonal_float16_matrix_is_bounded_within_a_millionth() -> None:
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(512, 512)))[0]
    stored = orthogonal.astype(np.float16)
    truth = np.linalg.svd(stored.astype(float), compute_uv=False)[0]
    assert 0 <= norm_upper(stored) / truth - 1 < 1e-6


@pytest.mark.parametrize("side", [1024, 2048])
def test_both_proofs_are_within_a_millionth_on_large_float32_layers(side: int) -> None:
    """Any vector gives a lower bound of the norm; the two upper ones must be next to it."""
    generator = np.random.default_rng(side)
    # A product of reflections is orthogonal and needs no factorisation.
    matrix = np.eye(side)
    for _ in range(4):
        v = generator.normal(size=(side, 1))
        matrix -= 2 * v @ (v.T @ matrix) / (v.T @ v)
    stored = matrix.astype(np.float32)
    v = generator.normal(size=side)
    below = np.linalg.norm(stored.astype(float) @ v) / np.linalg.norm(v) * (1 - 1e-12)
    for bound in (norm_upper(stored), float(residual_norms_upper(stored))):
        assert below <= bound <= below * (1 + 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_bound_without_finite_entries(bad: float) -> None:
    matrix = np.eye(3)
    matrix[2, 1] = bad
    with pytest.raises(BoundError, match="not finite"):
        norm_upper(matrix)


def test_a_wrong_guess_is_never_a_wrong_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof is the residual: whatever LAPACK returns, the bound holds or is refused."""
    matrix = np.random.default_rng(0).normal(size=(6, 6))
    gram, truth = matrix.T @ matrix, np.linalg.norm(matrix, 2) ** 2
    eigvalsh, cholesky = np.linalg.eigvalsh, np.linalg.cholesky
    for factor in (0.0, 0.5, 0.99, 2.0):
        monkeypatch.setattr(np.linalg, "eigvalsh", lambda m, f=factor: eigvalsh(m) * f)
        # A factorisation that "succeeds" on an indefinite matrix.
        monkeypatch.setattr(np.linalg, "cholesky", lambda m: cholesky(m + 100 * np.eye(6)))
        assert largest_eigenvalue_upper(gram, np.zeros(())) >= truth


def test_gamma_refuses_what_it_cannot_cover() -> None:
    assert gamma(10) >= 10 * 2.0**-53
    with pytest.raises(BoundError):
        gamma(2**50)


def test_up_and_down_are_neighbours() -> None:
    assert down(1.0) < 1.0 < up(1.0)
    assert up(down(1.0)) == 1.0
