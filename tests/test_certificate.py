from fractions import Fraction

import numpy as np
import pytest
from helpers import make_network, random_pixels
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdeploy.certificate import (
    feature_errors_upper,
    file_radius,
    integer_budget,
    network_radii,
    pixel_norms_upper,
    scale_radius,
)
from lipdeploy.exporters.freeze import freeze
from lipdeploy.frozen import FrozenNetwork

RADII = st.floats(0, 1e6, allow_subnormal=True)
FACTORS = st.floats(1e-6, 1e6)


@given(RADII, RADII, FACTORS)
def test_radii_are_rounded_down(rho: float, error: float, lipschitz: float) -> None:
    radius = float(network_radii(np.array([rho]), np.array([error]), lipschitz)[0])
    exact = (Fraction(rho) - Fraction(error)) / Fraction(lipschitz)
    assert 0 <= radius <= max(exact, 0)
    assert radius + 1e-320 >= exact * (1 - Fraction(1, 10**13)) - Fraction(rho) / Fraction(10**15)


def test_denormal_radii_are_rounded_down() -> None:
    for smallest in (5e-324, 1e-323, 1.5e-323):
        radius = network_radii(np.array([smallest]), np.array([0.0]), 1.5)[0]
        assert Fraction(float(radius)) <= Fraction(smallest) / Fraction(1.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_certifies_nothing(bad: float) -> None:
    assert network_radii(np.array([bad]), np.array([0.0]), 1.0)[0] == 0
    assert network_radii(np.array([1.0]), np.array([bad]), 1.0)[0] == 0


@given(RADII, FACTORS)
def test_scaled_radii_are_rounded_down(radius: float, factor: float) -> None:
    assert 0 <= Fraction(scale_radius(radius, factor)) <= Fraction(radius) / Fraction(factor)


@given(RADII, st.floats(0, 10), FACTORS)
def test_file_radii_are_rounded_down(radius: float, error: float, norm: float) -> None:
    exact = (Fraction(radius) - Fraction(error)) / Fraction(norm)
    assert 0 <= Fraction(file_radius(radius, error, norm)) <= max(exact, 0)


@given(st.floats(0, 100))
def test_the_integer_budget_is_the_largest_sum_below_the_radius(radius: float) -> None:
    budget, squared = integer_budget(radius), (255 * Fraction(radius)) ** 2
    assert budget < squared or (budget, radius) == (-1, 0)
    assert budget + 1 >= squared


def test_a_radius_that_is_a_root_does_not_count_its_own_sphere() -> None:
    assert [integer_budget(r) for r in (0.0, 2**-9, 1.0, 2.0)] == [-1, 0, 65024, 260099]


def test_whatever_an_engine_returns_is_measured() -> None:
    engine, reference = np.array([[3.0, 4.0]]), np.zeros((1, 2))
    error = feature_errors_upper(engine, reference, np.array([1e-9]))[0]
    assert 5 + 1e-9 <= error < 5.0001


@settings(max_examples=10)
@given(st.integers(0, 99), st.sampled_from(["float32", "float16"]), st.booleans())
def test_the_reference_error_contains_the_error_of_float64(
    seed: int, dtype: str, zero: bool
) -> None:
    """Against the same network in 64-bit mantissas."""
    network = freeze(make_network(seed, padding="zero" if zero else "circular")).stored_as(dtype)
    pixels = random_pixels(4, 8, seed)
    bound = network.reference_error(pixel_norms_upper(pixels))
    wide = in_long_double(network, pixels)
    error = np.linalg.norm((network.features(pixels) - wide).astype(float), axis=1)
    assert np.all(error <= bound)
    assert np.all(bound < 1e-8)


def in_long_double(network: FrozenNetwork, pixels: np.ndarray) -> np.ndarray:
    from test_operators import mv_longdouble

    from lipdeploy.frozen import Linear

    x = pixels.astype(np.longdouble).transpose(2, 3, 0, 1)
    for operation in network.operations:
        if isinstance(operation, Linear):
            bias = operation.bias.astype(np.longdouble)
            spread = bias if bias.ndim == 1 else bias[:, :, None, :]
            x = mv_longdouble(operation.operator, x) + spread
        else:
            x = operation(x)
    return x.transpose(2, 3, 0, 1).reshape(len(pixels), -1)
