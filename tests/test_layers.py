"""Laws of the torch layers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from lipdeploy.errors import UsageError
from lipdeploy.training.activations import ChannelMax, MaxMin, SpaceToDepth
from lipdeploy.training.architecture import Architecture, Padding
from lipdeploy.training.block_exponential import apply_block_exponential, is_cheaper, whole
from lipdeploy.training.heads import MlpHead, NormalizedHead, OrthogonalHead, orthogonal_weight
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.losses import offset_cross_entropy, training_loss
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.series import BlockOperator, ZeroPaddedConvolution, apply_exponential
from lipdeploy.training.skew import SkewKernel, skew_taps, unfoldings
from lipdeploy.training.soc import SkewOrthogonalConvolution

CONVERGED = 40


def layer(
    c_in: int, c_out: int, grid: int, kernel_size: int, padding: Padding
) -> SkewOrthogonalConvolution:
    torch.manual_seed(c_in + 10 * grid)
    made = SkewOrthogonalConvolution(c_in, c_out, grid, kernel_size, padding).double().eval()
    made.evaluation_degree = CONVERGED
    return made


def jacobian(made: SkewOrthogonalConvolution) -> Tensor:
    n, c = made.grid, made.in_channels
    units = torch.eye(n * n * c, dtype=torch.double).view(-1, n, n, c).permute(1, 2, 0, 3)
    with torch.no_grad():
        images = made(units) - made.bias
    return images.permute(2, 0, 1, 3).flatten(1).T


def series_by_definition(made: SkewOrthogonalConvolution, x: Tensor) -> Tensor:
    """sum_k A^k x / k!, A applied tap by tap with explicit padding."""
    taps, k = made.kernel().detach(), made.kernel.kernel_size
    c = taps.shape[1]
    kernel = taps.permute(1, 2, 0).reshape(c, c, k, k)
    mode = "circular" if made.padding == "circular" else "constant"
    term = functional.pad(x, (0, c - x.shape[-1])).permute(2, 3, 0, 1)
    total = term.clone()
    for power in range(1, CONVERGED + 1):
        padded = functional.pad(term, [k // 2] * 4, mode=mode)
        term = functional.conv2d(padded, kernel) / power
        total = total + term
    return total.permute(2, 3, 0, 1)[..., : made.out_channels] + made.bias


CASES = [
    (c_in, c_out, grid, kernel_size, padding)
    for c_in, c_out in [(4, 4), (3, 6), (6, 4)]
    for grid in (1, 2, 3, 4, 7, 8)
    for kernel_size in (1, 3)
    for padding in ("circular", "zero")
    if not (grid == 1 and kernel_size == 3 and padding == "circular")
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_layer_is_the_series_of_its_convolution(
    case: tuple[int, int, int, int, Padding],
) -> None:
    made = layer(*case)
    x = torch.randn(case[2], case[2], 2, case[0], dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(made(x), series_by_definition(made, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_jacobian_is_orthogonal_or_part_of_one(
    case: tuple[int, int, int, int, Padding],
) -> None:
    made = layer(*case)
    matrix = jacobian(made)
    if made.in_channels <= made.out_channels:
        identity = torch.eye(matrix.shape[1], dtype=torch.double)
        torch.testing.assert_close(matrix.T @ matrix, identity, rtol=0, atol=1e-12)
    else:
        assert torch.linalg.matrix_norm(matrix, 2) <= 1 + 1e-12


@settings(max_examples=20)
@given(st.integers(1, 8), st.sampled_from([1, 3, 5]), st.integers(0, 1000))
def test_kernels_are_skew(channels: int, kernel_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    kernel = SkewKernel(channels, kernel_size)()
    assert torch.equal(kernel.flip(0).transpose(1, 2), -kernel)


def test_unfoldings_bound_the_convolution() -> None:
    made = layer(4, 4, 8, 3, "circular")
    taps = made.kernel().detach()
    smallest = min(torch.linalg.matrix_norm(m, 2) for m in unfoldings(taps))
    frequencies = torch.arange(8, dtype=torch.double) * 2 * math.pi / 8
    norms = []
    for a in frequencies:
        for b in frequencies:
            phases = [a * (d // 3 - 1) + b * (d % 3 - 1) for d in range(9)]
            symbol = sum(torch.exp(1j * p) * t for p, t in zip(phases, taps, strict=True))
            norms.append(torch.linalg.matrix_norm(symbol, 2))
    assert max(norms) <= 3 * smallest
    assert smallest == pytest.approx(made.kernel.target, rel=0.05)


def exact_gradient(operator: object, weights: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """Gradient of <g, exp(A) x> by autograd through the converged series."""
    w = weights.clone().requires_grad_()
    v = x
    for k in range(30, 0, -1):
        v = operator.addmv(w, x, v, 1 / k)
    (gradient,) = torch.autograd.grad((v * g).sum(), w)
    return gradient


@pytest.mark.parametrize("kind", ["blocks", "zero"])
def test_the_fast_gradient_points_along_the_exact_one(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "blocks":
        operator, raw = BlockOperator(), torch.randn(3, 6, 6, dtype=torch.double)
        weights = 0.2 * (raw - raw.transpose(1, 2))
        x, g = torch.randn(2, 3, 5, 6, dtype=torch.double)
    else:
        operator = ZeroPaddedConvolution()
        half, centre = torch.randn(4, 4, 4), torch.randn(6)
        taps = 0.1 * skew_taps(half, centre).double()
        weights = taps.permute(1, 2, 0).reshape(4, 4, 3, 3)
        x, g = torch.randn(2, 5, 4, 6, 6, dtype=torch.double)
    w = weights.clone().requires_grad_()
    (apply_exponential(operator, w, x, 30) * g).sum().backward()
    assert w.grad is not None
    exact = exact_gradient(operator, weights, x, g)
    cosine = functional.cosine_similarity(w.grad.flatten(), exact.flatten(), dim=0)
    assert cosine > 0.95


def test_the_fast_gradient_is_exact_to_first_order() -> None:
    torch.manual_seed(0)
    raw = torch.randn(2, 5, 5, dtype=torch.double)
    skew, x, g = raw - raw.transpose(1, 2), *torch.randn(2, 2, 4, 5, dtype=torch.double)
    errors = []
    for scale in (1e-2, 1e-3):
        w = (scale * skew).requires_grad_()
        (apply_exponential(BlockOperator(), w, x, 30) * g).sum().backward()
        assert w.grad is not None
        errors.append((w.grad - exact_gradient(BlockOperator(), w.detach(), x, g)).norm())
    assert errors[1] < errors[0] / 50


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("kept", [(5, 5), (2, 5), (5, 3)])
def test_forming_the_exponential_is_the_series_and_its_fast_gradient(
    kind: str, kept: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    raw = torch.randn(3, 5, 5, dtype=torch.double) * 0.3
    upper = raw - raw.mT
    if kind == "complex":
        other = torch.randn(3, 5, 5, dtype=torch.double) * 0.3
        upper = torch.cat([upper, other + other.mT], dim=2)
    parts = 2 if kind == "complex" else 1
    x = [torch.randn(3, 7, kept[0], dtype=torch.double) for _ in range(parts)]
    weights = [torch.randn(3, 7, kept[1], dtype=torch.double) for _ in range(parts)]

    def gradients(formed: bool) -> list[Tensor]:
        u = upper.clone().requires_grad_()
        inputs = [part.clone().requires_grad_() for part in x]
        if formed:
            y = apply_block_exponential(u, torch.cat(inputs, dim=2), kept)
            outputs = y.split(kept[1], dim=2)
        else:
            full = torch.cat([functional.pad(part, (0, 5 - kept[0])) for part in inputs], dim=2)
            y = apply_exponential(BlockOperator(), whole(u), full, 5)
            outputs = tuple(part[..., : kept[1]] for part in y.split(5, dim=2))
        loss = sum((part * weight).sum() for part, weight in zip(outputs, weights, strict=True))
        return [*outputs, *torch.autograd.grad(loss, [u, *inputs])]

    for mine, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(mine, other)


def test_the_exponential_is_formed_where_there_are_many_rows() -> None:
    assert is_cheaper(128, (510, 16, 32))
    assert not is_cheaper(128, (1, 1024, 1024))


def test_the_input_gradient_is_exact() -> None:
    made = layer(3, 6, 4, 3, "circular")
    x = torch.randn(4, 4, 1, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(made, (x,))


def test_maxmin_sorts_pairs_and_passes_gradients() -> None:
    x = torch.randn(2, 2, 3, 8, dtype=torch.double, requires_grad=True)
    y = MaxMin()(x)
    torch.testing.assert_close(y.sum(dim=-1), x.sum(dim=-1))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    assert torch.autograd.gradcheck(MaxMin(), (x,))
    assert torch.autograd.gradcheck(ChannelMax(), (x,))
    torch.testing.assert_close(ChannelMax()(x), y[..., :4])


@pytest.mark.parametrize("side", [1, 2, 5, 8])
def test_space_to_depth_keeps_every_pixel_and_halves_the_grid(side: int) -> None:
    x = torch.randn(side, side, 2, 3)
    y = SpaceToDepth()(x)
    assert y.shape == ((side + 1) // 2, (side + 1) // 2, 2, 12)
    assert torch.equal(y[y != 0].sort().values, x.flatten().sort().values)


def test_space_to_depth_order_is_that_of_pixel_unshuffle() -> None:
    x = torch.randn(6, 6, 2, 3)
    expected = functional.pixel_unshuffle(x.permute(2, 3, 0, 1), 2).permute(2, 3, 0, 1)
    assert torch.equal(SpaceToDepth()(x), expected)


def test_heads_are_normalised() -> None:
    rows = orthogonal_weight(OrthogonalHead(8, 3).linear)
    torch.testing.assert_close(rows @ rows.T, torch.eye(3))
    torch.testing.assert_close(NormalizedHead(8, 3).matrix().norm(dim=1), torch.ones(3))
    hidden = orthogonal_weight(MlpHead(8, 3).hidden)
    torch.testing.assert_close(hidden @ hidden.T, torch.eye(8), rtol=0, atol=1e-5)


def test_the_curvature_penalty_approaches_the_largest_eigenvalue() -> None:
    torch.manual_seed(0)
    head = MlpHead(6, 3)
    for _ in range(200):
        estimate = head.curvature().detach()
    first, second = orthogonal_weight(head.hidden).detach(), head.output.matrix().detach()
    truth = [
        torch.linalg.eigvalsh(first.T @ torch.diag((second.amax(0) - row).clamp_min(0)) @ first)[-1]
        for row in second
    ]
    assert float(estimate) == pytest.approx(float(sum(truth)) / 3 / 4, rel=1e-3)


def test_the_offset_asks_for_a_margin() -> None:
    logits, labels = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
    shifted = torch.tensor([[0.5, 0.0], [0.0, 2.5]])
    expected = functional.cross_entropy(shifted / 0.25, labels) * 0.25
    torch.testing.assert_close(offset_cross_entropy(logits, labels, 0.5, 0.25), expected)


def test_the_curvature_penalty_counts_for_mlp_heads_only() -> None:
    pixels, labels = torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])
    for head, grows in (("mlp", True), ("lln", False)):
        shape = Architecture(image_size=8, classes=2, width=4, head=head)
        network = LipConvNet(shape, torch.zeros(3)).eval()
        with torch.no_grad():
            losses = [
                training_loss(network, network(pixels), labels, TrainingOptions(curvature=weight))
                for weight in (0.0, 10.0)
            ]
        assert bool(losses[1] > losses[0]) == grows


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        (32, [32, 16, 8, 4, 2, 1]),
        (28, [28, 14, 7, 4, 2, 1]),
        (64, [64, 32, 16, 8, 4, 2]),
        (8, [8, 4, 2, 1]),
        (224, [224, 112, 56, 28, 14, 7, 4, 2]),
    ],
)
def test_grids_shrink_to_two_by_two_or_less(size: int, grids: list[int]) -> None:
    assert Architecture(image_size=size, classes=2).grids() == grids


@pytest.mark.parametrize("head", ["linear", "lln", "mlp"])
@pytest.mark.parametrize("padding", ["circular", "zero"])
@pytest.mark.parametrize(("size", "depth", "width"), [(8, 5, 4), (9, 10, 6), (36, 5, 4)])
def test_networks_are_lipschitz_with_four_times_the_pixels(
    size: int, depth: int, width: int, head: str, padding: str
) -> None:
    torch.manual_seed(0)
    shape = Architecture(size, 3, width, depth, head, padding)
    network = LipConvNet(shape, torch.full((3,), 100.0)).double().eval()
    a, b = torch.rand(2, 4, 3, size, size, dtype=torch.double) * 255
    with torch.no_grad():
        moved = (network.features(a) - network.features(b)).norm(dim=1)
        assert network(a).shape == (4, 3)
    distance = (a - b).flatten(1).norm(dim=1) * 4 / 255
    assert torch.all(moved <= distance * (1 + 1e-6))
    assert torch.all(moved >= 0.01 * distance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 2}, "at least 4"),
        ({"classes": 1}, "at least 2 classes"),
        ({"width": 7}, "even"),
        ({"depth": 7}, "multiple of 5"),
        ({"head": "lnl"}, "expected one of linear, lln, mlp"),
        ({"padding": "none"}, "expected one of circular, zero"),
    ],
)
def test_impossible_architectures_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Architecture(**({"image_size": 8, "classes": 2} | change))
