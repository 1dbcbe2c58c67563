from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import make_network, random_pixels
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdeploy.arithmetic import FLOAT32
from lipdeploy.artifact import REFERENCE
from lipdeploy.certificate import (
    Answers,
    Certifier,
    feature_errors_upper,
    file_radius,
    integer_budget,
    scale_radius,
)
from lipdeploy.directed import AffineBound, round_down
from lipdeploy.engine_error import EngineErrors, ErrorAnalysis, distances_upper, reach
from lipdeploy.exporters.freeze import freeze
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.rounding import Rounding

RADII = st.floats(0, 1e6, allow_subnormal=True)
FACTORS = st.floats(1e-6, 1e6)


BLACK = Answers(np.zeros((1, 3, 8, 8)), np.zeros((1, 1)), np.zeros(1, dtype=np.int64))


def certifier(rho: float, error: float, lipschitz: float) -> Certifier:
    """Of a head that proves `rho` and a float64 reference that is off by at most `error`."""
    network = SimpleNamespace(
        centre=(0, 0, 0),
        image_size=8,
        features=lambda pixels: np.zeros((1, 1)),
        head=SimpleNamespace(radii_lower=lambda *given, **more: np.array([rho])),
    )
    errors = EngineErrors(*[AffineBound(error, 0.0)] * 3)
    bounds = {"lipschitz_upper": lipschitz, "reference_errors": errors}
    return Certifier(network, SimpleNamespace(**bounds, rounding=Rounding(FLOAT32)))


def network_radius(rho: float, error: float, lipschitz: float) -> float:
    return float(certifier(rho, error, lipschitz).network_radii(BLACK)[0])


def program_radius(rho: float, error: float, slope: float, lipschitz: float) -> float:
    none = AffineBound(0.0, 0.0)
    errors = EngineErrors(AffineBound(error, slope), none, none)
    return float(certifier(rho, 0.0, lipschitz).program_radii(BLACK, errors)[0])


def assert_close_below(radius: float, rho: float, error: float, lipschitz: Fraction) -> None:
    """Not above (rho - error) / lipschitz, and a relative 1e-11 of both below it at most.

    An error that is 0 is known up to 1e-139 only, the slack for underflow of a computed norm.
    """
    exact = (Fraction(rho) - Fraction(error)) / lipschitz
    assert 0 <= radius <= max(exact, 0)
    slack = Fraction(rho + error) / 10**11 + Fraction(1e-139)
    assert Fraction(radius) + Fraction(1e-320) >= exact - slack / lipschitz


@given(RADII, RADII, FACTORS)
def test_radii_are_rounded_down(rho: float, error: float, lipschitz: float) -> None:
    radius = network_radius(rho, error, lipschitz)
    assert_close_below(radius, rho, error, Fraction(lipschitz))


@given(RADII, RADII, st.floats(0, 10), FACTORS)
def test_radii_of_the_program_are_rounded_down(
    rho: float, error: float, slope: float, lipschitz: float
) -> None:
    """At distance 0 from the colour, where the error is its constant."""
    radius, limit = (
        program_radius(rho, error, slope, lipschitz),
        reach(SimpleNamespace(image_size=8), FLOAT32),
    )
    if radius == limit:
        assert rho - 2 * error > 0.999 * limit * (lipschitz + slope)
    else:
        assert_close_below(radius, rho, 2 * error, Fraction(lipschitz) + Fraction(slope))


def test_denormal_radii_are_rounded_down() -> None:
    for smallest in (5e-324, 1e-323, 1.5e-323):
        radius = round_down(np.array([smallest]) / 1.5)[0]
        assert Fraction(float(radius)) <= Fraction(smallest) / Fraction(1.5)
        assert network_radius(smallest, 0.0, 1.5) <= Fraction(smallest) / Fraction(1.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_certifies_nothing(bad: float) -> None:
    assert network_radius(bad, 0.0, 1.0) == program_radius(bad, 0.0, 0.0, 1.0) == 0
    assert network_radius(1.0, bad, 1.0) == program_radius(1.0, bad, 0.0, 1.0) == 0
    assert network_radius(1.0, 0.0, 1.0) > program_radius(1.0, 0.1, 0.0, 1.0) > 0


@given(RADII, FACTORS)
def test_scaled_radii_are_rounded_down(radius: float, factor: float) -> None:
    assert 0 <= Fraction(scale_radius(radius, factor)) <= Fraction(radius) / Fraction(factor)


@given(RADII, st.floats(0, 10), FACTORS)
def test_file_radii_are_rounded_down(radius: float, error: float, norm: float) -> None:
    exact = (Fraction(radius) - 2 * Fraction(error)) / Fraction(norm)
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
    distances = distances_upper(pixels, network.centre)
    bound = ErrorAnalysis(network).errors(REFERENCE).features(distances)
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
