"""Laws of all kinds of layers, activations and poolings, over lists of what makes them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Silent, make_network, random_pixels
from test_freeze import assert_same
from torch import Tensor, nn

from lipdeploy.arithmetic import FLOAT16, FLOAT32, FLOAT64
from lipdeploy.artifact import digest
from lipdeploy.errors import BoundError, FreezeError, UsageError
from lipdeploy.exporters.forms import mixed
from lipdeploy.exporters.freeze import freeze, layer_shapes
from lipdeploy.exporters.plan import LayerShape, candidates
from lipdeploy.exporters.sources import Mixing, Source, folded
from lipdeploy.fourier import RealFourier, symbol_factors
from lipdeploy.frozen import MaxMin, SpaceToDepth
from lipdeploy.operators import DenseMatrix, PointwiseMatrix
from lipdeploy.rounding import Rounding
from lipdeploy.structure import describe, restore
from lipdeploy.taylor import TaylorConv
from lipdeploy.training.activations import Householder
from lipdeploy.training.activations import ProjectionPooling as Pooling
from lipdeploy.training.architecture import ACTIVATIONS, LAYERS, POOLINGS, Architecture
from lipdeploy.training.bcop import on_cells, product_of_projections
from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.circular import CircularLayer, orthonormal, symbol_of
from lipdeploy.training.data import Dataset, LabelledImages
from lipdeploy.training.layers import CIRCULAR, make_layer
from lipdeploy.training.loop import Trainer
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.rescaled import gram_sums

SHAPES = [
    (c_in, c_out, grid, kernel_size)
    for c_in, c_out in [(4, 4), (3, 6), (8, 4)]
    for grid, kernel_size in [(1, 1), (2, 3), (3, 3), (6, 3), (5, 1)]
]
ORTHOGONAL = ["bcop", "cayley", "aoc", "bro"]


def layer(name: str, shape: tuple[int, int, int, int], **options: object) -> CircularLayer:
    torch.manual_seed(sum(shape))
    c_in, c_out, grid, kernel_size = shape
    made = CIRCULAR[name](c_in, c_out, grid, kernel_size, **options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def grids(count: int, shape: tuple[int, int, int, int]) -> Tensor:
    return torch.randn(shape[2], shape[2], count, shape[0], dtype=torch.double)


def jacobian(made: nn.Module, x: Tensor) -> Tensor:
    """At x of shape (n, n, 1, c), as one matrix."""
    found = torch.autograd.functional.jacobian(made, x)
    return found.reshape(found[..., 0, 0, 0, 0].numel(), -1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CIRCULAR)
def test_layers_are_1_lipschitz_and_orthogonal_where_they_say_so(
    name: str, shape: tuple[int, int, int, int]
) -> None:
    made = layer(name, shape)
    matrix = jacobian(made, grids(1, shape))
    assert torch.linalg.matrix_norm(matrix, 2) <= 1 + 1e-10
    if made.is_orthogonal and made.in_channels <= made.out_channels:
        identity = torch.eye(matrix.shape[1], dtype=torch.double)
        torch.testing.assert_close(matrix.T @ matrix, identity, rtol=0, atol=1e-10)
    assert made.is_orthogonal == (name in ORTHOGONAL)


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ORTHOGONAL)
@pytest.mark.usefixtures("several_threads")
def test_many_channels_on_several_threads_stay_orthogonal(name: str) -> None:
    made, x = layer(name, (160, 160, 4, 3)), grids(2, (160, 160, 4, 3))
    assert torch.get_num_threads() > 1
    torch.testing.assert_close(made(x + 1).sub(made(x)).norm(), torch.ones_like(x).norm())


@pytest.mark.parametrize("name", CIRCULAR)
def test_gradients_are_exact(name: str) -> None:
    shape = (2, 4, 3, 3)
    made, x = layer(name, shape), grids(2, shape)
    weights = {name: p.detach().requires_grad_() for name, p in made.named_parameters()}

    def output(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(weights, values, strict=True))
        return torch.func.functional_call(made, given, (x,))

    assert torch.autograd.gradcheck(output, (x.requires_grad_(), *weights.values()))


@pytest.mark.parametrize("name", CIRCULAR)
@pytest.mark.parametrize("shape", [(4, 4, 4, 3), (8, 8, 3, 3), (4, 8, 2, 1)], ids=str)
@pytest.mark.parametrize("shift", [(1, 0), (0, 1)])
def test_layers_commute_with_shifts(
    name: str, shape: tuple[int, int, int, int], shift: tuple[int, int]
) -> None:
    made, x = layer(name, shape), grids(2, shape)
    moved = made(x.roll(shift, dims=(0, 1)))
    torch.testing.assert_close(moved, made(x).roll(shift, dims=(0, 1)))


@pytest.mark.parametrize("name", CIRCULAR)
def test_a_layer_in_bfloat16_is_near_to_float32(name: str) -> None:
    shape = (8, 8, 4, 3)
    made, x = layer(name, shape).float(), grids(4, shape).float()
    exact, rounded = made(x), made(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


def test_products_of_projections_have_the_symbol_of_their_factors() -> None:
    torch.manual_seed(0)
    matrix = orthonormal(torch.randn(6, 6, dtype=torch.double))
    columns = orthonormal(torch.randn(4, 6, 3, dtype=torch.double))
    taps = product_of_projections(matrix, columns)
    frequencies = RealFourier(8).frequencies()
    symbol = torch.complex(
        *symbol_of(taps, *map(torch.from_numpy, symbol_factors(frequencies, 3, 8)))
    )
    for (down, right), found in zip(frequencies, symbol, strict=True):
        expected = matrix.to(torch.complex128)
        for index, basis in enumerate(columns):
            projection = (basis @ basis.T).to(torch.complex128)
            angle = 2 * np.pi * (right if index % 2 else down) / 8
            behind = torch.eye(6) - projection
            expected = expected @ (projection + np.exp(-1j * angle) * behind)
        # The kernel begins at offset (-1, -1).
        moved = np.exp(2j * np.pi * (down + right) / 8)
        torch.testing.assert_close(found, expected * moved)


def test_a_convolution_on_cells_is_that_on_the_grid() -> None:
    torch.manual_seed(1)
    taps = torch.randn(9, 2, 2, dtype=torch.double)
    x = torch.randn(1, 2, 8, 8, dtype=torch.double)

    def convolved(x: Tensor, taps: Tensor) -> Tensor:
        around = nn.functional.pad(x, [1] * 4, mode="circular")
        return nn.functional.conv2d(around, taps.permute(1, 2, 0).unflatten(2, (3, 3)))

    on_grid = nn.functional.pixel_unshuffle(convolved(x, taps), 2)
    cells = convolved(nn.functional.pixel_unshuffle(x, 2), on_cells(taps))
    torch.testing.assert_close(cells, on_grid)


def test_row_sums_of_the_gram_matrix_are_those_of_a_large_grid() -> None:
    torch.manual_seed(2)
    taps, weights = torch.randn(9, 3, 3, dtype=torch.double), torch.rand(3).double() + 0.5
    n, matrix = 7, torch.zeros(7, 7, 3, 7, 7, 3, dtype=torch.double)
    for index, tap in enumerate(taps):
        for row, column in np.ndindex(n, n):
            matrix[row, column, :, (row + index // 3 - 1) % n, (column + index % 3 - 1) % n] += tap
    square = matrix.reshape(n * n * 3, -1)
    gram = (square.T @ square).abs().reshape(n * n, 3, n * n, 3)[0].sum(dim=1)
    expected = (gram * weights / weights[:, None]).sum(dim=1)
    torch.testing.assert_close(gram_sums(taps, weights), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", LAYERS)
def test_frozen_equals_trained_for_every_kind(name: str, activation: str, pooling: str) -> None:
    network = make_network(3, 8, layer=name, activation=activation, pooling=pooling, width=4)
    perturb(network)
    frozen = freeze(network)
    assert_same(network, frozen)
    assert 1 - 1e-6 < frozen.lipschitz_upper * 255 / 4 < 1 + 1e-6 or name in ("aol", "sll")
    assert frozen.lipschitz_upper * 255 / 4 < 1 + 1e-6


def perturb(network: nn.Module) -> None:
    torch.manual_seed(9)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "angles" in name or "log_weights" in name:
                parameter.normal_()


@pytest.mark.parametrize("depth", [5, 10])
@pytest.mark.parametrize("size", [9, 12])
@pytest.mark.parametrize("name", ["sll", "aoc", "cayley"])
def test_frozen_equals_trained_on_odd_grids_and_in_deeper_networks(
    name: str, size: int, depth: int
) -> None:
    network = make_network(4, size, layer=name, depth=depth, activation="householder2")
    perturb(network)
    assert_same(network, freeze(network))


@pytest.mark.parametrize("form", ["spectral", "fused", "dense", "tiled"])
@pytest.mark.parametrize("name", CIRCULAR)
def test_every_form_is_the_same_function(name: str, form: str) -> None:
    network = make_network(5, 8, layer=name, activation="householder", pooling="projection")
    perturb(network)
    assert_same(network, freeze(network, form))


@pytest.mark.parametrize("name", ["bcop", "aol", "cayley"])
def test_large_grids_are_cut_into_tiles_where_a_layer_has_few_taps(name: str) -> None:
    network = make_network(6, 40, layer=name, activation="householder")
    perturb(network)
    frozen = freeze(network, "tiled")
    assert_same(network, frozen)
    forms = [operation.operator.form for operation in frozen.linear()]
    assert (forms[0] == "tiled") == (name != "cayley")


def test_a_layer_by_symbols_has_no_series() -> None:
    with pytest.raises(FreezeError, match="taylor"):
        freeze(make_network(layer="bcop"), "taylor")


@pytest.mark.parametrize("activation", ["householder", "householder2"])
def test_rotations_cost_no_layer_of_their_own(activation: str) -> None:
    plain, learned = make_network(), make_network(activation=activation)
    extra = {"householder": 0, "householder2": 1}[activation]
    assert len(layer_shapes(learned)) == len(layer_shapes(plain)) + extra


@pytest.mark.parametrize("activation", ["householder", "householder2"])
def test_zero_padded_layers_keep_rotations_apart(activation: str) -> None:
    network = make_network(7, 8, padding="zero", activation=activation, pooling="projection")
    perturb(network)
    for form in ("auto", "taylor"):
        assert_same(network, freeze(network, form))


@pytest.mark.parametrize("order", [1, 2])
def test_householder_keeps_norms_and_sorts_at_first(order: int) -> None:
    activation, x = Householder(6, order).double(), torch.randn(50, 6, dtype=torch.double)
    with torch.no_grad():
        activation.angles.normal_()
    y = activation(x).detach()
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1))
    assert float((y[1:] - y[:-1]).norm(dim=1).sub((x[1:] - x[:-1]).norm(dim=1)).max()) < 1e-12
    assert torch.autograd.gradcheck(activation, (x[:3].requires_grad_(),))


def test_the_first_order_of_householder_begins_as_maxmin() -> None:
    x = torch.randn(5, 8)
    first, second = x.chunk(2, dim=1)
    expected = torch.cat([first.maximum(second), first.minimum(second)], dim=1)
    assert torch.equal(Householder(8)(x), expected)


def test_projection_pooling_is_the_distance_to_a_half_line() -> None:
    pooling, x = Pooling(2).double(), torch.randn(200, 2, dtype=torch.double) * 3
    angle = -pooling.angles.item()
    line = torch.linspace(0, 30, 30001, dtype=torch.double)
    points = torch.stack([line * np.cos(angle), line * np.sin(angle)], dim=1)
    expected = torch.cdist(x, points).min(dim=1).values
    torch.testing.assert_close(pooling(x)[:, 0], expected, rtol=0, atol=1e-3)


def test_networks_of_every_kind_survive_description_and_restoration() -> None:
    frozen = freeze(make_network(layer="sll", pooling="projection")).stored_as("float16")
    again = restore(describe(frozen), frozen.weights())
    pixels = random_pixels(2, 8)
    assert np.array_equal(again.features(pixels), frozen.features(pixels))
    assert digest(describe(again), again.weights()) == digest(describe(frozen), frozen.weights())


def test_zero_padding_is_for_soc() -> None:
    with pytest.raises(UsageError, match="--padding zero"):
        Architecture(8, 2, layer="bcop", padding="zero")
    with pytest.raises(UsageError, match="cayley"):
        Architecture(8, 2, layer="cayly")


@pytest.mark.parametrize("arithmetic", [FLOAT64, FLOAT32], ids=lambda a: a.name)
def test_pooled_distances_are_within_their_bound(arithmetic: object) -> None:
    dtype = np.float64 if arithmetic is FLOAT64 else np.float32
    random = np.random.default_rng(0)
    for scale in (1e-30, 1e-22, 1e-19, 1.0, 1e9):
        x = (random.normal(size=(2, 2, 3, 8)) * scale).astype(dtype)
        first, second = np.split(x, 2, axis=-1)
        negative = np.minimum(first, dtype(0))
        computed = np.sqrt(negative * negative + second * second).astype(np.float64)
        exact = np.hypot(negative.astype(np.longdouble), second.astype(np.longdouble))
        lost = Rounding(arithmetic).distance_of_pairs(computed.size, float(np.abs(x).max()))
        bound = lost.constant + lost.slope * float(np.linalg.norm(x.astype(np.longdouble)))
        assert float(np.linalg.norm((computed - exact).astype(np.float64))) <= bound


def test_pooling_is_refused_where_it_is_not_bounded() -> None:
    with pytest.raises(BoundError, match="float16"):
        Rounding(FLOAT16).distance_of_pairs(4, 1.0)
    with pytest.raises(BoundError, match="overflow"):
        Rounding(FLOAT32).distance_of_pairs(4, 1e19)


def test_matrices_of_channels_are_taken_up() -> None:
    random = np.random.default_rng(3)
    before, after = random.normal(size=(4, 4)), random.normal(size=(6, 6))
    x = random.normal(size=(2, 2, 3, 4))
    for operator in (
        PointwiseMatrix(2, random.normal(size=(4, 6))),
        DenseMatrix(2, random.normal(size=(16, 24))),
    ):
        expected = operator.mv(x @ before.T) @ after.T
        np.testing.assert_allclose(mixed(operator, before, after).mv(x), expected)
    series = TaylorConv(2, 4, 4, np.zeros((9, 4, 4)), 1)
    with pytest.raises(FreezeError, match="TaylorConv"):
        mixed(series, before, before)


def test_a_matrix_goes_through_space_to_depth_into_the_next_layer() -> None:
    rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(4, 4)))[0]
    shape = LayerShape(2, 16, 16, 1, "circular")
    behind = Source(shape, lambda s, c: PointwiseMatrix(2, np.eye(16)), np.zeros(16))
    operations = folded([MaxMin(), Mixing(rotation), SpaceToDepth(), behind])
    assert [type(item) for item in operations] == [MaxMin, SpaceToDepth, Source]
    x = np.random.default_rng(5).normal(size=(4, 4, 2, 4))
    (source,) = (item for item in operations if isinstance(item, Source))
    (choice,) = candidates(source.shape)
    np.testing.assert_allclose(
        source.operator(choice).mv(SpaceToDepth()(x)), SpaceToDepth()(x @ rotation.T)
    )


def bright_and_dark(count: int) -> Dataset:
    random = np.random.default_rng(0)
    labels = np.arange(count) % 2
    levels = np.where(labels == 1, 90, 160)[:, None, None, None]
    pixels = random.normal(levels, 40, (count, 3, 8, 8)).clip(0, 255).astype(np.uint8)
    images = LabelledImages(torch.from_numpy(pixels), torch.from_numpy(labels))
    return Dataset("tiny", ("bright", "dark"), images)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_trains_is_saved_and_frozen(name: str, precision: str, tmp_path: Path) -> None:
    shape = Architecture(8, 2, width=4, layer=name, activation="householder", pooling="projection")
    options = TrainingOptions(
        epochs=4, batch_size=16, learning_rate=0.05, validation=0, shift=1, precision=precision
    )
    trainer = Trainer(bright_and_dark(160), shape, options, tmp_path, "lipdeploy train tiny")
    trainer.run(Silent())
    assert trainer.accuracy > 0.9
    model = load_model(trainer.model_path)
    assert model.network.architecture == shape
    assert_same(model.network, freeze(model.network))


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_that_asks_for_a_gradient_gets_one(name: str) -> None:
    """Several processes that train together wait for all of them."""
    network = make_network(layer=name, activation="householder", pooling="projection").train()
    network(torch.from_numpy(random_pixels(4, 8)).float()).square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_made_layers_are_of_their_kind() -> None:
    for name in CIRCULAR:
        assert type(make_layer(name, (4, 4), 4, 3)) is CIRCULAR[name]
    assert set(LAYERS) == {"soc", *CIRCULAR}
