"""Exponentials of skew matrices against mpmath, torch and their own laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpc, mpf

from lipdeploy.errors import FreezeError
from lipdeploy.exporters.exponential import (
    POWERS,
    REACHES,
    _coefficients,
    _hermitian_product,
    _symmetric_product,
    skew_exponential,
)

KINDS = ("real", "complex")


def skew(kind: str, side: int, norm: float, count: int = 2, seed: int = 0) -> np.ndarray:
    """Skew matrices of this spectral norm, shape (count, side, side)."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(count, side, side))
    if kind == "complex":
        values = values + 1j * generator.normal(size=values.shape)
    values = values - adjoint(values)
    largest = np.linalg.norm(values, 2, axis=(-2, -1)).max()
    return values * (norm / largest) if largest else values


def adjoint(matrices: np.ndarray) -> np.ndarray:
    return np.swapaxes(matrices.conj(), -1, -2)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Largest spectral norm of the differences."""
    return float(np.linalg.norm(first - second, 2, axis=(-2, -1)).max())


@settings(max_examples=30)
@given(
    kind=st.sampled_from(KINDS),
    side=st.integers(1, 5),
    norm=st.floats(0, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_exponential_is_that_of_fifty_digits(
    kind: str, side: int, norm: float, seed: int
) -> None:
    matrices = skew(kind, side, norm, seed=seed)
    with mp.workdps(50):
        exact = [mp.expm(mp.matrix(matrix.tolist())) for matrix in matrices]
        values = [[[complex(e[i, j]) for j in range(side)] for i in range(side)] for e in exact]
    assert distance(skew_exponential(matrices), np.array(values)) <= 2e-15 * (1 + norm)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [32, 130, 300])
@pytest.mark.parametrize("norm", [0.01, 1.2, 1.8, 2.1, 3.4, 7.0, 30.0])
def test_large_exponentials_are_orthogonal_and_those_of_torch(
    kind: str, side: int, norm: float
) -> None:
    matrices = skew(kind, side, norm)
    rotations = skew_exponential(matrices)
    assert rotations.dtype == matrices.dtype
    assert distance(adjoint(rotations) @ rotations, np.eye(side)) <= 4e-15 * max(1.0, norm)
    reference = torch.linalg.matrix_exp(torch.from_numpy(matrices)).numpy()
    # The reference is the coarser of the two: it squares where its estimate of the norm is large.
    assert distance(rotations, reference) <= 1e-13 * (1 + norm)


@pytest.mark.parametrize("groups", REACHES)
def test_what_the_polynomial_leaves_out_is_below_a_rounding(groups: int) -> None:
    reach, degree = REACHES[groups], 2 * POWERS * groups + 1
    first = 2 * (reach / 2) ** (degree + 1) / math.factorial(degree + 1)
    assert first / (1 - reach / (2 * degree + 4)) <= 2.0**-53
    cosine, sine = _coefficients(groups)
    with mp.workdps(40):
        for t in np.linspace(-reach, reach, 41):
            x = mpf(float(t))
            even = mp.fsum(mpf(c) * (-(x**2)) ** j for j, c in enumerate(cosine))
            odd = mp.fsum(mpf(c) * (-(x**2)) ** j for j, c in enumerate(sine)) * x
            # Beside the remainder, each term's coefficient is rounded.
            assert abs(mpc(even, odd) - mp.expj(x)) <= 2.0**-53 * (1 + math.exp(abs(t)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_is_its_matrices_whatever_its_shape(kind: str) -> None:
    matrices = skew(kind, 40, 2.0, count=120).reshape(2, 3, 20, 40, 40)
    before = matrices.copy()
    rotations = skew_exponential(matrices)
    assert rotations.shape == matrices.shape
    assert np.array_equal(matrices, before)
    for index in np.ndindex(2, 3, 20):
        assert distance(rotations[index][None], skew_exponential(matrices[index])[None]) <= 1e-14


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        many = skew("real", 200, 1.0, count=9)
        alone = [skew_exponential(matrix[None]) for matrix in many]
        assert distance(skew_exponential(many), np.concatenate(alone)) <= 1e-14
        with pytest.raises(FreezeError):
            skew_exponential(many * np.nan)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_small_and_empty_stacks(kind: str) -> None:
    zero = np.zeros((3, 5, 5), dtype=complex if kind == "complex" else float)
    assert np.abs(skew_exponential(zero) - np.eye(5)).max() <= 2.0**-53
    assert skew_exponential(zero[:0]).shape == (0, 5, 5)
    if kind == "complex":
        assert abs(skew_exponential(np.array([[1j]])) - np.exp(1j)) <= 1e-15


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_exponential_in_float64_is_refused(kind: str, bad: float) -> None:
    matrices = skew(kind, 3, 1.0)
    matrices[1, 0, 2] = bad
    with pytest.raises(FreezeError, match="not accurate in float64"):
        skew_exponential(matrices)


@pytest.mark.parametrize("side", [1, 7, 128, 129, 300])
def test_products_of_matrices_that_commute_are_those_of_all_entries(side: int) -> None:
    matrix = torch.from_numpy(skew("real", side, 1.0))
    square = matrix @ matrix
    assert torch.dist(_symmetric_product(matrix, matrix), square) <= 1e-14
    assert torch.dist(_symmetric_product(square, square), square @ square) <= 1e-14
    hermitian = -1j * torch.from_numpy(skew("complex", side, 1.0))
    cube = hermitian @ hermitian @ hermitian
    product = _hermitian_product(hermitian.real + hermitian.imag, cube.real + cube.imag)
    exact = hermitian @ cube
    assert torch.dist(product, exact.real + exact.imag) <= 3e-14
