"""The opponent of the training benchmark takes the paper's steps; the study; gaps of heads."""

import copy
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import make_network
from inference import timing
from paper import PaperNetwork
from torch import Tensor, nn

from lipdeploy.exporters.freeze import freeze_head
from lipdeploy.training.heads import HeadName, make_head

FORMATS = [torch.contiguous_format, torch.channels_last]
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    """A script of the benchmarks, which is no package."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def logits_and_gradients(network: nn.Module, pixels: Tensor) -> list[Tensor]:
    logits = network(pixels)
    gradients = torch.autograd.grad(logits.square().sum(), list(network.parameters()))
    return [logits, *gradients]


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("depth", [5, 10])
def test_the_opponent_takes_the_steps_of_a_zero_padded_network(
    depth: int, memory_format: torch.memory_format
) -> None:
    network = make_network(image_size=8, depth=depth, padding="zero").double().train()
    pixels = torch.rand(4, 3, 8, 8, dtype=torch.double) * 255
    opponent = PaperNetwork(copy.deepcopy(network), memory_format)
    for mine, other in zip(
        logits_and_gradients(network, pixels),
        logits_and_gradients(opponent, pixels),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_both_sides_learn_and_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    training = script("training")
    training.SECONDS = 0.1
    case = training.Case(width=4, depth=5, batch=8)
    measured = {case: training.timed(case)}
    training.print_steps(measured)
    assert "width 4" in capsys.readouterr().out
    assert set(training.summary(measured)) == {"speedup_width4"}


def test_a_profile_counts_products_by_type_and_nothing_twice() -> None:
    tool = script("step_profile")
    a = torch.ones(4, 6, dtype=torch.bfloat16, requires_grad=True)
    b = torch.ones(6, 8, dtype=torch.bfloat16)
    x = torch.zeros(5)
    with tool.Watch() as watch:
        (a @ b.reshape(8, 6).T).sum().backward()
        x.copy_(torch.ones(5))
        torch.baddbmm(torch.ones(2, 3, 5), torch.ones(2, 3, 4), torch.ones(2, 4, 5))
        torch.where(torch.ones(3) > 0, 1.0, 2.0)
    found = watch.work[tool.PRODUCTS, "bfloat16"]
    assert (found.calls, found.flops) == (2, 2 * 2 * 4 * 6 * 8)  # forward and backward
    batched = watch.work[tool.PRODUCTS, "float32"]
    assert (batched.calls, batched.flops) == (1, 2 * 2 * 3 * 4 * 5)
    assert watch.work["copies, casts, joins", "float32"].calls == 1
    assert watch.work["comparisons, sorting", "float32"].calls == 1


def test_a_profile_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = script("step_profile")
    monkeypatch.setattr(tool, "SIDE", 16)
    monkeypatch.setattr(tool, "SECONDS", 0.1)
    monkeypatch.setattr(timing, "TURN", 0.001)
    tool.print_profile(tool.Case(width=4, depth=5, batch=8))
    printed = capsys.readouterr().out
    assert "matrix products" in printed
    assert "GFLOP/s in bfloat16" in printed


def test_the_study_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = script("study")
    monkeypatch.setattr(study, "RESULTS", tmp_path / "study.json")
    names = [variant.name for variant in study.VARIANTS]
    assert len(set(names)) == len(names)
    first, *rest = study.Results().missing()
    done = study.Run(first[0].name, first[1], 0.5, (0.3, 0.2, 0.1))
    study.Results([done], {done.name: 0.25}).write()
    results = study.Results.read()
    assert results.runs == [done]
    assert list(results.missing()) == rest
    study.print_table(results)
    assert "50.0" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["lln", "mlp"])
def test_the_nearest_point_found_is_outside_of_the_certified_ball(name: HeadName) -> None:
    torch.manual_seed(0)
    head = make_head(name, 6, 3).double()
    features = 3 * torch.randn(40, 6, dtype=torch.double)
    frozen = freeze_head(head)
    winners = frozen.logits(features.numpy()).argmax(axis=1)
    certified = frozen.radii_lower(features.numpy(), winners)
    of = torch.from_numpy(winners)
    gap = script("head_gap")
    found = torch.stack([gap.nearest(head, features, of, (of + i) % 3) for i in (1, 2)])
    nearest = found.amin(dim=0).numpy()
    assert (nearest >= certified).all()
    if name == "lln":
        np.testing.assert_allclose(nearest, certified, rtol=1e-4)
    else:
        assert np.isfinite(nearest).mean() > 0.5


def test_libraries_compute_the_same_thin_products() -> None:
    tool = script("thin_products")
    side = 2 * max(tool.STRIPS)
    blocks = tool.Blocks(3, side)
    draw = np.random.default_rng(0)
    weights = [draw.standard_normal((3, side, side), dtype=np.float32) for _ in range(2)]
    for layout in tool.LAYOUTS:
        x = draw.standard_normal(layout.shape(blocks), dtype=np.float32)
        operands = layout.operands(weights)
        assert len(operands) == (6 if layout.alone else 2)
        expected = sum(w @ x if layout.left else x @ w for w in operands)
        if layout.strip:
            # (strips, blocks, vectors, 1, width) is what whole blocks give, cut.
            whole = x[:, :, 0] @ sum(weights)
            joined = np.moveaxis(expected[:, :, :, 0], 0, 2).reshape(whole.shape)
            np.testing.assert_allclose(joined, whole, rtol=1e-4, atol=1e-4)
        for make in tool.LIBRARIES.values():
            found = make(operands, layout, x)()
            # The sum, or both products.
            total = (
                np.sum([np.asarray(part) for part in found], axis=0) if len(found) > 1 else found[0]
            )
            np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)
