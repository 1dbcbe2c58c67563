import numpy as np
import pytest

from lipdeploy.fourier import RealFourier, offsets, symbol_factors

SIDES = [1, 2, 3, 4, 5, 6, 8, 9, 16, 21]


@pytest.mark.parametrize("n", SIDES)
@pytest.mark.parametrize("name", ["basis", "paired_basis", "phases", "plane_basis"])
def test_every_basis_is_orthonormal(n: int, name: str) -> None:
    basis = getattr(RealFourier(n), name)()
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-13)


@pytest.mark.parametrize("n", SIDES)
@pytest.mark.parametrize("name", ["frequencies", "complex_frequencies"])
def test_independent_frequencies_and_their_mirrors_are_all_of_them(n: int, name: str) -> None:
    fourier = RealFourier(n)
    whole = getattr(fourier, name)()
    listed = [tuple(f % n) for f in (*fourier.real_frequencies(), *whole, *-whole)]
    assert sorted(listed) == [(i, j) for i in range(n) for j in range(n)]


def test_the_symbol_is_the_eigenvalue_of_a_circular_correlation() -> None:
    n, generator = 6, np.random.default_rng(0)
    taps, x = generator.normal(size=9), generator.normal(size=(n, n))
    y = sum(t * np.roll(x, -d, axis=(0, 1)) for t, d in zip(taps, offsets(3), strict=True))
    frequencies = RealFourier(n).complex_frequencies()
    cosine, sine = symbol_factors(frequencies, 3, n)
    points = np.stack(np.meshgrid(range(n), range(n), indexing="ij"), axis=-1)
    waves = np.exp(2j * np.pi * (points @ frequencies.T) / n)
    symbol = (cosine + 1j * sine) @ taps
    np.testing.assert_allclose(
        np.tensordot(y, waves, axes=2), symbol * np.tensordot(x, waves, axes=2), atol=1e-12
    )
