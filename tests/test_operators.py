"""Laws of every form, by a list of factories."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from lipdeploy.arithmetic import FLOAT32, FLOAT64
from lipdeploy.errors import FreezeError, ShapeError
from lipdeploy.exporters import forms
from lipdeploy.exporters.plan import Choice, LayerShape
from lipdeploy.operators import DenseMatrix, LinearOperator, PointwiseMatrix
from lipdeploy.rounding import Rounding
from lipdeploy.spectral import Spectral, SpectralConv
from lipdeploy.taylor import TaylorConv, exponential_remainder_upper
from lipdeploy.training.skew import skew_taps

Factory = Callable[[], LinearOperator]


def taps(channels: int, kernel_size: int = 3, scale: float = 0.3, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn((kernel_size**2 - 1) // 2, channels, channels, generator=generator)
    centre = torch.randn(channels * (channels - 1) // 2, generator=generator)
    return (skew_taps(half, centre) * scale).double().numpy()


CHOICES = [Choice("pointwise"), Choice("dense"), Choice("taylor")]
SPECTRAL = [Choice(form, copies) for form in ("spectral", "fused") for copies in (1, 2)] + [
    Choice("spectral", products="rows"),
    Choice("fused", products="vectors"),
]


def make(choice: Choice, grid: int, c_in: int, c_out: int) -> LinearOperator:
    padding = "circular" if choice in SPECTRAL else "zero"
    kernel_size = 1 if choice.form == "pointwise" else 3
    shape = LayerShape(grid, c_in, c_out, kernel_size, padding)
    return forms.freeze_kernel(taps(max(c_in, c_out), kernel_size), shape, choice)


SHAPES = [(1, 4, 4), (2, 3, 4), (3, 4, 4), (4, 4, 2), (5, 3, 4), (6, 3, 3)]
FACTORIES: dict[str, Factory] = {
    f"{choice}-{n}-{a}-{b}": (lambda c=choice, n=n, a=a, b=b: make(c, n, a, b))
    for choice in CHOICES + SPECTRAL
    for n, a, b in SHAPES
    if choice.form != "spectral" or n >= 3
}
every_operator = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())
DTYPES = ["float64", "float32", "float16"]


def as_matrix(operator: LinearOperator) -> np.ndarray:
    """Columns are the images of unit grids; shape (outputs, inputs)."""
    n, c = operator.grid, operator.in_channels
    size = n * n * c
    units = np.eye(size).reshape(size, n, n, c).transpose(1, 2, 0, 3)
    images: np.ndarray = operator.mv(units).transpose(2, 0, 1, 3).reshape(size, -1)
    return images.T


@every_operator
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_bound_holds_and_is_tight(factory: Factory, dtype: str) -> None:
    operator = factory().stored_as(dtype)
    truth = np.linalg.norm(as_matrix(operator), 2)
    assert truth <= operator.norm_upper * (1 + 1e-13)
    # Blocks bound the operator before channels are dropped; stored float16 adds up to 1e-3.
    assert operator.norm_upper <= 1 + 5e-3


@every_operator
def test_rotations_of_all_channels_are_orthogonal(factory: Factory) -> None:
    operator = factory()
    if operator.in_channels <= operator.out_channels:
        matrix = as_matrix(operator)
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(matrix.shape[1]), atol=1e-11)


@every_operator
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rounding_bound_contains_the_error(factory: Factory, dtype: str) -> None:
    """Against the same code on 64-bit mantissas, on inputs of mixed magnitude."""
    operator = factory().stored_as(dtype)
    n, c = operator.grid, operator.in_channels
    generator = np.random.default_rng(1)
    x = generator.normal(size=(n, n, 4, c)) * 10.0 ** generator.integers(-6, 7, size=(n, n, 4, c))
    reference = mv_longdouble(operator, x)
    error = np.sqrt(((operator.mv(x) - reference) ** 2).sum(axis=(0, 1, 3)))
    size = np.sqrt((x**2).sum(axis=(0, 1, 3)))
    step = operator.step(Rounding(FLOAT64))
    assert np.all(error <= step.rounding_upper * size + step.underflow)
    assert step.norm_upper == operator.norm_upper
    assert step.underflow < 1e-200


def test_the_reference_adds_as_its_bound_says() -> None:
    """Weights on which every addition of a short sum rounds, and one long sum would round more."""
    n, unit = 63, 2.0**-53
    fourier = forms.RealFourier(n)
    gain, tiny, cross = 2.0**-6, 2.0**-33 * 1.001, 2.0**-20
    basis = np.zeros((n, n), np.float32)
    basis[0, 0], basis[0, 1:], basis[1:, 0] = 1, cross, 2.0**-26.5 * 1.001 / gain
    blocks = np.zeros((len(fourier.frequencies()), 2, 1, 3), np.float32)
    blocks[:, 0, 0, 0] = 1
    blocks[fourier.interior * n :, 0, 0, 0] = gain**2
    operator = SpectralConv(
        basis=basis,
        phases=(gain * np.eye(2 * n)).astype(np.float32),
        real_blocks=np.array([[[1, 0, 0]]], np.float32),
        complex_blocks=blocks,
        copies=2,
    )
    x = np.zeros((n, n, 1, 3))
    x[1:, 0, 0, 0] = x[0, 1:, 0, 0] = np.float32(tiny)
    x[0, 0, 0, 0] = 1
    error = float(np.linalg.norm((operator.mv(x) - mv_longdouble(operator, x)).ravel()))
    step = operator.step(Rounding(FLOAT64))
    assert 10 * unit < error <= step.rounding_upper * np.linalg.norm(x) + step.underflow


def mv_longdouble(operator: LinearOperator, x: np.ndarray) -> np.ndarray:
    """The operator in 64-bit mantissas: the same code on wider numbers."""
    import lipdeploy.operators
    import lipdeploy.spectral
    import lipdeploy.taylor

    modules = (lipdeploy.operators, lipdeploy.spectral, lipdeploy.taylor)
    saved = [module.exact for module in modules]
    try:
        for module in modules:
            module.exact = lambda weights: weights.astype(np.longdouble)
        return operator.mv(x.astype(np.longdouble))
    finally:
        for module, function in zip(modules, saved, strict=True):
            module.exact = function


@every_operator
def test_scaling_scales(factory: Factory) -> None:
    operator = factory()
    x = np.random.default_rng(0).normal(
        size=(operator.grid, operator.grid, 2, operator.in_channels)
    )
    np.testing.assert_allclose(operator.scaled(0.25).mv(x), 0.25 * operator.mv(x), atol=1e-13)
    assert operator.scaled(0.25).norm_upper == pytest.approx(operator.norm_upper / 4, rel=1e-9)


@every_operator
def test_wrong_shapes_are_refused(factory: Factory) -> None:
    operator = factory()
    with pytest.raises(ShapeError, match=operator.form):
        operator.mv(np.zeros((operator.grid + 1, operator.grid, 1, operator.in_channels)))


def test_no_channel_that_is_not_there_is_stored() -> None:
    spectral = make(Choice("spectral"), 4, 3, 8)
    assert isinstance(spectral, SpectralConv)
    assert {w.shape[-2:] for w in spectral.blocks().values()} == {(8, 3)}
    assert make(Choice("dense"), 2, 3, 8).weights()["matrix"].shape == (12, 32)


@pytest.mark.parametrize("choice", SPECTRAL, ids=str)
def test_only_half_of_the_frequencies_is_stored(choice: Choice) -> None:
    spectral = make(choice, 8, 4, 4)
    assert isinstance(spectral, Spectral)
    assert sum(w.size for w in spectral.blocks().values()) == 8 * 8 * 4 * 4


@pytest.mark.parametrize("choice", SPECTRAL, ids=str)
@pytest.mark.parametrize("grid", [3, 4, 5, 8])
def test_every_spectral_form_is_the_exponential_of_the_convolution(
    choice: Choice, grid: int
) -> None:
    """Against the exponential of the whole circular operator as one matrix."""
    kernel = taps(4)
    shape = LayerShape(grid, 4, 4, 3, "circular")
    expected = torch.linalg.matrix_exp(torch.from_numpy(forms.dense_skew(kernel, shape)))
    np.testing.assert_allclose(as_matrix(make(choice, grid, 4, 4)), expected, atol=1e-12)


def test_a_kernel_that_is_not_skew_has_no_series() -> None:
    kernel = taps(3)
    kernel[0, 0, 0] += 1e-9
    with pytest.raises(ShapeError, match="skew"):
        TaylorConv(4, 3, 3, kernel, degree=8)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rounded_kernels_stay_exactly_skew(dtype: str) -> None:
    operator = make(Choice("taylor"), 5, 4, 4).stored_as(dtype)
    stored = operator.weights()["taps"]
    assert np.array_equal(stored[::-1].transpose(0, 2, 1), -stored)


@pytest.mark.parametrize("grid", [2, 3, 5, 8])
def test_the_padded_grid_bounds_a_zero_padded_convolution(grid: int) -> None:
    kernel = taps(4, seed=grid)
    operator = TaylorConv(grid, 4, 4, kernel, degree=8)
    matrix = forms.dense_skew(kernel, LayerShape(grid, 4, 4, 3, "zero"))
    assert np.linalg.norm(matrix, 2) <= operator.skew_norm_upper
    # A grid that is too small for the kernel would wrap around and can be below the truth.
    assert operator.skew_norm_upper <= 1.6 * np.linalg.norm(matrix, 2)


@pytest.mark.parametrize(("norm", "degree"), [(0.0, 4), (1.0, 5), (3.3, 16), (8.0, 40), (1e10, 50)])
def test_the_series_remainder_is_above_the_truth(norm: float, degree: int) -> None:
    exact = Fraction(norm) ** (degree + 1)
    for k in range(1, degree + 2):
        exact /= k
    bound = exponential_remainder_upper(norm, degree)
    assert bound == float("inf") or Fraction(bound) >= exact


def test_rounding_bounds_cover_the_worst_order_of_sums() -> None:
    """1 + u + u + ... rounds to 1 at every step when the large term comes first."""
    for length in (4, 16, 64):
        matrix = np.full((length, 1), 2.0**-53)
        matrix[0] = 1.0
        exact = sum(Fraction(float(v)) for v in matrix[:, 0])
        computed = 0.0
        for value in matrix[:, 0].tolist():
            computed += value
        error = abs(Fraction(computed) - exact)
        assert error > (length - 2) * Fraction(2.0**-53)
        for operator in (PointwiseMatrix(1, matrix), DenseMatrix(1, matrix)):
            allowed = Fraction(operator.step(Rounding(FLOAT64)).rounding_upper) * Fraction(
                length**0.5
            )
            assert error <= allowed <= 3 * Fraction(length**0.5) * error


def test_a_grid_without_room_for_the_kernel_would_miss_the_norm() -> None:
    """On a circle of 2 points the taps at -1 and 1 cancel; with zero padding they do not."""
    kernel = np.zeros((9, 1, 1))
    kernel[3], kernel[5] = -1.0, 1.0
    operator = TaylorConv(2, 1, 1, kernel, degree=8)
    matrix = forms.dense_skew(kernel, LayerShape(2, 1, 1, 3, "zero"))
    assert np.linalg.norm(matrix, 2) == pytest.approx(1)
    assert operator.skew_norm_upper >= 1


@pytest.mark.parametrize("degree", [1, 2, 5])
def test_a_short_series_is_no_rotation_and_its_bound_says_so(degree: int) -> None:
    operator = TaylorConv(3, 4, 4, taps(4), degree)
    truth = np.linalg.norm(as_matrix(operator), 2)
    assert 1.001 < truth <= operator.norm_upper


def test_blocks_that_do_not_fit_the_grid_are_refused() -> None:
    spectral = make(Choice("spectral"), 4, 4, 4)
    assert isinstance(spectral, SpectralConv)
    with pytest.raises(ShapeError, match="complex blocks"):
        replace(spectral, complex_blocks=spectral.complex_blocks[:-1])
    with pytest.raises(ShapeError, match="real blocks"):
        replace(spectral, real_blocks=spectral.real_blocks[:-1])


def test_a_series_that_would_never_end_is_refused() -> None:
    kernel = taps(4, scale=50.0)
    with pytest.raises(FreezeError, match="more than 200"):
        forms.taylor_conv(kernel, LayerShape(3, 4, 4, 3, "zero"))


def test_pointwise_is_the_same_matrix_everywhere() -> None:
    operator = PointwiseMatrix(3, np.arange(6.0).reshape(2, 3))
    x = np.random.default_rng(0).normal(size=(3, 3, 2, 2))
    np.testing.assert_allclose(operator.mv(x)[1, 2, 0], x[1, 2, 0] @ operator.matrix)


def series_error(operator: TaylorConv, u: float) -> float:
    """The recursion in the docstring of `TaylorConv.step`, again, for sums in any order."""
    taps = np.abs(operator.taps.astype(float))
    many = sum(float(np.linalg.norm(tap, 2)) for tap in taps)
    norm, count = operator.skew_norm_upper, operator.channels + len(taps) + 4
    relative = count * u / (1 - count * u)
    size, error = 1.0, 0.0
    for k in range(operator.degree, 0, -1):
        error = norm * error / k + relative * (1 + many * (size + error) / k)
        size = 1 + norm * size / k
    return error + 2 * u * (size + error)


@pytest.mark.parametrize("degree", [1, 2, 8])
@pytest.mark.parametrize("channels", [1, 4])
def test_the_series_error_is_that_of_its_recursion_and_not_below_any_first_step(
    channels: int, degree: int
) -> None:
    operator = TaylorConv(3, channels, channels, taps(channels), degree).stored_as("float32")
    step, u = operator.step(Rounding(FLOAT32)), 2.0**-24
    assert step.rounding_upper == pytest.approx(series_error(operator, u), rel=1e-4)
    many = sum(float(np.linalg.norm(np.abs(tap), 2)) for tap in operator.taps)
    # The last step alone: a product, a sum, and rounding of x + A v.
    assert step.rounding_upper >= u * (1 + many)
    assert step.underflow > 0


def test_zero_padding_on_wide_networks_is_bounded() -> None:
    """Errors that are there go through A, not through |A|: the series amplifies by exp(||A||)."""
    kernel = 0.3 * taps(48)
    operator = TaylorConv(6, 48, 48, kernel, degree=16).stored_as("float32")
    many = sum(float(np.linalg.norm(np.abs(tap), 2)) for tap in operator.taps)
    assert many > 6 * operator.skew_norm_upper
    assert operator.step(Rounding(FLOAT32)).rounding_upper < 2.0**-24 * np.exp(many) / 1e6
