"""Large grids in tiles: the same convolution, its bounds, its nodes, and what trimming drops."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import random_pixels
from onnx import TensorProto, helper
from test_operators import as_matrix, taps
from test_verify import write

from lipdeploy.arithmetic import FLOAT32
from lipdeploy.directed import CLAIM
from lipdeploy.errors import FreezeError, ModelError, ShapeError
from lipdeploy.exporters.forms import freeze_kernel
from lipdeploy.exporters.onnx_graph import IR_VERSION, OPSET, GraphBuilder
from lipdeploy.exporters.onnx_grid import Grid, Wanted
from lipdeploy.exporters.onnx_operators import emit_operator
from lipdeploy.exporters.onnx_tiles import emit_tiles
from lipdeploy.exporters.plan import Choice, LayerShape, candidates
from lipdeploy.exporters.tiles import ExponentialKernel, convolution, tiled_conv, trim
from lipdeploy.exporters.verify import verify
from lipdeploy.fourier import offsets
from lipdeploy.frozen import FrozenNetwork, Linear
from lipdeploy.heads import LinearHead
from lipdeploy.operators import LinearOperator
from lipdeploy.rounding import Rounding
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.spectral import SpectralConv
from lipdeploy.structure import describe, restore
from lipdeploy.tiled import TiledConv, kernel_norm_upper, symbol_distance_upper
from lipdeploy.verification import independent_norm_upper

# Grid, tile, side of the kernel: with and without a multiple of the kept points, odd and even.
SIZES = [(24, 12, 5), (23, 12, 5), (25, 13, 5), (12, 12, 5), (17, 9, 5), (13, 5, 3), (20, 12, 7)]
every_size = pytest.mark.parametrize(("grid", "tile", "size"), SIZES)
DTYPES = ["float64", "float32", "float16"]


def random_kernel(size: int, c_in: int, c_out: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(size**2, c_out, c_in)) / (size * c_in**0.5)


def near_isometry(
    grid: int, tile: int, size: int, c_in: int = 3, c_out: int = 3, scale: float = 0.001
) -> TiledConv:
    """Tiles of a trimmed exponential, with any number of taps."""
    kernel = ExponentialKernel(taps(max(c_in, c_out), scale=scale), c_out, c_in, side=32)
    return TiledConv(grid, size, convolution(kernel.trimmed(size), tile))


def convolve(kernel: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Tap by tap, around the edge."""
    return sum(
        np.roll(x, (-down, -right), axis=(0, 1)) @ tap.T
        for (down, right), tap in zip(offsets(int(len(kernel) ** 0.5)), kernel, strict=True)
    )


@every_size
@pytest.mark.parametrize(("c_in", "c_out"), [(3, 3), (2, 4), (4, 1)])
def test_tiles_equal_the_convolution_of_the_whole_grid(
    grid: int, tile: int, size: int, c_in: int, c_out: int
) -> None:
    kernel = random_kernel(size, c_in, c_out)
    operator = TiledConv(grid, size, convolution(kernel, tile))
    x = np.random.default_rng(1).normal(size=(grid, grid, 2, c_in))
    np.testing.assert_allclose(operator.mv(x), convolve(kernel, x), rtol=0, atol=1e-12)
    np.testing.assert_allclose(operator.taps, kernel, rtol=0, atol=1e-14)


@every_size
def test_kept_points_cover_the_grid_once_and_no_tile_reads_a_point_twice(
    grid: int, tile: int, size: int
) -> None:
    operator = TiledConv(grid, size, convolution(random_kernel(size, 1, 1), tile))
    kept = [
        (start - size // 2 + point) % grid
        for start, cut in zip(operator.edges[:-1], operator.kept, strict=True)
        for point in range(tile)[cut]
    ]
    assert sorted(kept) == list(range(grid))
    assert all(size // 2 <= cut.start and cut.stop <= tile - size // 2 for cut in operator.kept)
    reads = [{(s - size // 2 + i) % grid for i in range(tile)} for s in operator.edges[:-1]]
    assert all(len(points) == tile for points in reads)
    assert operator.overlap == max(sum(p in points for points in reads) for p in range(grid))


def power_iteration(operator: LinearOperator, steps: int = 60) -> float:
    """A lower bound of the norm."""
    matrix = as_matrix(operator)
    v = np.random.default_rng(0).normal(size=matrix.shape[1])
    for _ in range(steps):
        v = matrix.T @ (matrix @ v)
        v /= np.linalg.norm(v)
    return float(np.linalg.norm(matrix @ v))


@pytest.mark.parametrize(("c_in", "c_out"), [(3, 3), (2, 4)])
@pytest.mark.parametrize(("grid", "tile", "size"), [(24, 12, 5), (17, 9, 5), (13, 5, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_bound_holds_and_is_tight(
    grid: int, tile: int, size: int, dtype: str, c_in: int, c_out: int
) -> None:
    operator = near_isometry(grid, tile, size, c_in, c_out).stored_as(dtype)
    lower = power_iteration(operator)
    assert lower <= operator.norm_upper
    # float16 moves each block by up to about 3e-4, and two tiles overlap.
    assert operator.norm_upper <= lower + (2e-3 if dtype == "float16" else 1e-4)


def test_the_norm_bound_holds_far_from_an_isometry() -> None:
    for seed in range(3):
        operator = TiledConv(24, 5, convolution(random_kernel(5, 2, 2, seed), 12))
        assert power_iteration(operator) <= operator.norm_upper <= 1.5 * power_iteration(operator)


def test_tiles_that_are_no_convolution_are_bounded() -> None:
    """Blocks of a stranger's choice: every frequency another random matrix."""
    inner = convolution(random_kernel(5, 2, 2), 12)
    generator = np.random.default_rng(3)
    inner = SpectralConv(
        basis=inner.basis + 0.01 * generator.normal(size=inner.basis.shape),
        phases=inner.phases + 0.01 * generator.normal(size=inner.phases.shape),
        real_blocks=generator.normal(size=inner.real_blocks.shape),
        complex_blocks=generator.normal(size=inner.complex_blocks.shape),
    )
    operator = TiledConv(17, 5, inner)
    assert power_iteration(operator) <= operator.norm_upper
    assert power_iteration(operator) > kernel_norm_upper(operator.taps)


def symbol_norms(kernel: np.ndarray, side: int) -> np.ndarray:
    """By numpy's transform on a fine grid of frequencies."""
    k = int(len(kernel) ** 0.5)
    grid = np.zeros((side, side, *kernel.shape[1:]))
    grid[:k, :k] = kernel.reshape(k, k, *kernel.shape[1:])
    return np.linalg.norm(np.fft.fft2(grid, axes=(0, 1)), 2, axis=(2, 3))


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize(("c_in", "c_out"), [(1, 1), (2, 3), (3, 2)])
def test_a_kernel_is_bounded_at_every_frequency(size: int, c_in: int, c_out: int) -> None:
    for seed in range(3):
        kernel = random_kernel(size, c_in, c_out, seed)
        assert symbol_norms(kernel, 180).max() <= kernel_norm_upper(kernel)
    small = near_isometry(24, 12, size, c_in, c_out).taps
    assert symbol_norms(small, 180).max() <= kernel_norm_upper(small)
    assert kernel_norm_upper(small) <= symbol_norms(small, 180).max() + 1e-4


def test_a_peak_between_the_sampled_angles_is_bounded() -> None:
    """K(f) = 1 + e (cos f1 + cos f2) / 2, turned so that its peak lies between the angles."""
    shift, e = np.pi / 12, 0.01
    kernel = np.zeros((3, 3, 2, 2))
    turn = np.array([[np.cos(shift), -np.sin(shift)], [np.sin(shift), np.cos(shift)]])
    kernel[1, 1] = np.eye(2)
    kernel[1, 2], kernel[1, 0] = e / 4 * turn, e / 4 * turn.T
    kernel[2, 1], kernel[0, 1] = e / 4 * turn, e / 4 * turn.T
    flat = kernel.reshape(9, 2, 2)
    assert symbol_norms(flat, 12).max() < 1 + 0.98 * e
    assert 1 + 0.9999 * e <= symbol_norms(flat, 24).max() <= kernel_norm_upper(flat)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", [8, 9])
def test_the_distance_of_a_tile_from_a_convolution_is_bounded(dtype: str, tile: int) -> None:
    kernel = random_kernel(5, 2, 3)
    inner = convolution(kernel, tile).stored_as(dtype)
    other = kernel + (0 if dtype == "float16" else 1e-3 * random_kernel(5, 2, 3, 1))
    for near in (kernel, other):
        difference = as_matrix(inner) - as_matrix(convolution(near, tile))
        truth = np.linalg.norm(difference, 2)
        bound = symbol_distance_upper(inner, near)
        assert truth - 1e-14 <= bound <= 1.1 * truth + (1e-11 if dtype == "float64" else 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("grid", "tile", "size"), [(24, 12, 5), (17, 9, 5)])
def test_a_second_proof_finds_no_more_than_is_claimed(
    dtype: str, grid: int, tile: int, size: int
) -> None:
    operator = near_isometry(grid, tile, size, scale=0.01).stored_as(dtype)
    found = independent_norm_upper(operator)
    assert power_iteration(operator) <= found <= operator.norm_upper * CLAIM
    stretched = operator.scaled(1.01)
    assert independent_norm_upper(stretched) > operator.norm_upper * CLAIM


def test_the_distance_counts_a_basis_that_is_not_orthonormal() -> None:
    kernel = random_kernel(5, 2, 3)
    exact = convolution(kernel, 9)
    wide = replace(exact, basis=1.1 * exact.basis, real_blocks=1.3 * exact.real_blocks)
    truth = np.linalg.norm(as_matrix(wide) - as_matrix(exact), 2)
    assert truth <= symbol_distance_upper(wide, kernel) <= 2 * truth


def mv_float32(operator: TiledConv, x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The same code, weights and values in float32."""
    with monkeypatch.context() as patch:
        patch.setattr("lipdeploy.spectral.exact", lambda weights: weights.astype(np.float32))
        result = operator.mv(x.astype(np.float32))
    assert result.dtype == np.float32
    return result


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("grid", "tile", "size"), [(24, 12, 5), (23, 12, 5), (13, 5, 3)])
def test_the_rounding_bound_contains_the_error(
    dtype: str, grid: int, tile: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = near_isometry(grid, tile, size).stored_as(dtype)
    generator = np.random.default_rng(1)
    shape = (grid, grid, 4, operator.in_channels)
    x = generator.normal(size=shape) * 10.0 ** generator.integers(-4, 5, size=shape)
    x = x.astype(np.float32).astype(np.float64)
    error = mv_float32(operator, x, monkeypatch) - operator.mv(x)
    errors = np.sqrt((error**2).sum(axis=(0, 1, 3)))
    size_of_x = np.sqrt((x**2).sum(axis=(0, 1, 3)))
    step = operator.step(Rounding(FLOAT32))
    assert np.all(errors <= step.rounding_upper * size_of_x + step.underflow)
    assert np.all(errors >= 1e-9 * size_of_x)
    assert step.norm_upper == operator.norm_upper


def test_rounding_counts_every_tile() -> None:
    operator = near_isometry(24, 12, 5).stored_as("float32")
    inner, whole = (o.step(Rounding(FLOAT32)) for o in (operator.inner, operator))
    assert (operator.overlap, operator.count) == (2, 3)
    assert whole.rounding_upper == pytest.approx(2 * inner.rounding_upper)
    assert whole.underflow / inner.underflow == pytest.approx(3)


def test_scaling_scales() -> None:
    operator = near_isometry(17, 9, 5)
    x = np.random.default_rng(0).normal(size=(17, 17, 2, 3))
    np.testing.assert_allclose(operator.scaled(0.25).mv(x), 0.25 * operator.mv(x), atol=1e-13)
    assert operator.scaled(0.25).norm_upper == pytest.approx(operator.norm_upper / 4, rel=1e-9)


@pytest.mark.parametrize(
    ("grid", "kernel_size", "tile"),
    [(24, 4, 12), (24, 1, 12), (24, -5, 12), (24, 9, 12), (11, 5, 12), (0, 5, 12), (-24, 5, 12)],
)
def test_parameters_that_make_no_tiles_are_refused(grid: int, kernel_size: int, tile: int) -> None:
    with pytest.raises(ShapeError, match=r"tiled: .* expected an odd number of taps from 3 to 7"):
        TiledConv(grid, kernel_size, convolution(random_kernel(5, 1, 1), tile))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="tiled"):
        near_isometry(24, 12, 5).mv(np.zeros((12, 12, 1, 3)))


def network_of(operator: TiledConv) -> FrozenNetwork:
    n, c = operator.grid, operator.out_channels
    head = LinearHead(np.ones((2, n * n * c), dtype=np.float32), np.zeros(2, dtype=np.float32))
    return FrozenNetwork(n, (Linear(operator, np.zeros(c, dtype=np.float32)),), head)


def test_description_and_weights_make_the_same_operator() -> None:
    network = network_of(near_isometry(17, 9, 5).stored_as("float32"))
    again = restore(describe(network), network.weights())
    assert describe(again) == describe(network)
    pixels = random_pixels(1, 17)
    assert np.array_equal(again.features(pixels), network.features(pixels))


@pytest.mark.parametrize(
    ("name", "value"),
    [("grid", 10**9), ("grid", 17.0), ("kernel_size", True), ("kernel_size", 4), ("more", 1)],
)
def test_hostile_descriptions_are_refused(name: str, value: object) -> None:
    network = network_of(near_isometry(17, 9, 5))
    structure = describe(network)
    structure["operations"][0]["parameters"][name] = value
    with pytest.raises(ModelError):
        restore(structure, network.weights())


def test_the_dropped_part_is_bounded_between_frequencies() -> None:
    """Against the exponential at the frequencies of a finer grid."""
    skew = taps(3, scale=0.05)
    coarse, fine = (ExponentialKernel(skew, 3, 3, side=side) for side in (32, 96))
    for size in (3, 5, 7):
        trimmed = coarse.trimmed(size)
        placed = np.zeros((96, 96, 3, 3))
        places = np.arange(size) - size // 2
        placed[places[:, None], places] = trimmed.reshape(size, size, 3, 3)
        difference = fine.symbols - np.fft.rfft2(placed, axes=(0, 1))
        truth = np.linalg.norm(difference, 2, axis=(2, 3)).max()
        assert truth <= coarse.dropped_upper(trimmed) <= 3 * truth


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_as_few_taps_are_kept_as_the_tolerance_allows(tolerance: float) -> None:
    kernel = ExponentialKernel(taps(3, scale=0.02), 3, 3, side=32)
    trimmed, dropped = trim(kernel, 32, tolerance)
    size = int(len(trimmed) ** 0.5)
    assert dropped <= tolerance
    assert size == 3 or kernel.dropped_upper(kernel.trimmed(size - 2)) > tolerance


def test_a_kernel_that_does_not_fit_is_refused_with_a_way_out() -> None:
    shape = LayerShape(40, 4, 4, 3, "circular")
    with pytest.raises(FreezeError, match=r"of 17 x 17 taps up to .* --form spectral"):
        tiled_conv(taps(4, scale=0.5), shape)


@pytest.mark.parametrize(("c_in", "c_out"), [(2, 3), (3, 2)])
def test_tiles_differ_from_the_exponential_by_what_was_dropped(c_in: int, c_out: int) -> None:
    skew, shape = taps(3, scale=0.03), LayerShape(20, c_in, c_out, 3, "circular")
    kernel = ExponentialKernel(skew, c_out, c_in)
    operator = tiled_conv(skew, shape, tile=16, tolerance=1e-3)
    assert len(operator.taps) < 81
    truth = np.linalg.norm(
        as_matrix(operator) - as_matrix(freeze_kernel(skew, shape, Choice("spectral"))), 2
    )
    assert 1e-6 < truth <= kernel.dropped_upper(operator.taps) <= 1e-3


def test_large_circular_grids_are_tiled() -> None:
    def forms(grid: int, channels: int, *asked: str) -> set[str]:
        shape = LayerShape(grid, channels, channels, 3, "circular")
        return {choice.form for choice in candidates(shape, *asked)}

    assert forms(224, 32) == {"tiled"}
    assert forms(64, 8) == {"tiled", "spectral"}
    assert forms(32, 32) == {"spectral"}
    assert forms(64, 8, "spectral") == {"spectral"}
    assert forms(64, 8, "tiled") == {"tiled"}
    assert "tiled" not in forms(31, 8, "tiled")
    with pytest.raises(FreezeError, match="no tiled form"):
        candidates(LayerShape(64, 8, 8, 3, "zero"), "tiled")


@every_size
def test_the_graph_computes_the_operator(grid: int, tile: int, size: int) -> None:
    """On values of shape (rows, columns, channels, batch)."""
    operator = TiledConv(grid, size, convolution(random_kernel(size, 2, 3), tile))
    operator = operator.stored_as("float32")
    graph = GraphBuilder()

    def inner(x: str) -> str:
        given = Grid((x,), tile, 2)
        (result,) = emit_operator(operator.inner, graph, given, "layer", Wanted()).pieces
        return result

    graph.node("Identity", emit_tiles(operator, graph, "x", inner), output="y")
    infos = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [grid, grid, c, "batch"])]
        for name, c in (("x", 2), ("y", 3))
    )
    proto = helper.make_graph(graph.nodes, "tiles", *infos, list(graph.constants.values()))
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(proto, opset_imports=opset, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).normal(size=(grid, grid, 2, 3)).astype(np.float32)
    (y,) = OnnxRuntime(model.SerializeToString(), "cpu").outputs(["y"], {"x": x})
    expected = operator.mv(x.transpose(0, 1, 3, 2).astype(np.float64)).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(y, expected, atol=2e-6)


def test_a_tiled_engine_passes_every_check(tmp_path: Path) -> None:
    checks = list(verify(write(tmp_path / "model.onnx", form="tiled", image_size=40)))
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
    names = [check.name for check in checks if check.name.startswith("norm of layer")]
    assert names[:2] == ["norm of layer 0 (tiled)", "norm of layer 1 (spectral)"]
