"""Compiled passes change a training by rounding only."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import make_network

from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.distributed import ALONE
from lipdeploy.training.learner import Learner
from lipdeploy.training.options import TrainingOptions

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def compiler_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was compiled before is used."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch.compiler.reset()


@pytest.mark.slow
def test_compiled_steps_are_the_same_steps() -> None:
    torch.manual_seed(0)
    network = make_network(image_size=8, depth=5)
    other = copy.deepcopy(network)
    options = TrainingOptions(accumulate=2, learning_rate=0.05)
    learners = [
        Learner(network, options, 4, ALONE, is_compiled=True),
        Learner(other, options, 4, ALONE),
    ]
    for _ in range(3):
        pixels, labels = torch.rand(8, 3, 8, 8) * 255, torch.randint(0, 3, (8,))
        parts = [(pixels[:4], labels[:4]), (pixels[4:], labels[4:])]
        losses = []
        for learner in learners:
            learner.network.train()
            losses.append(learner.gradient(parts).mean_loss)
            learner.step()
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    mine, plain = network.state_dict(), other.state_dict()
    assert list(mine) == list(plain)
    for name, value in plain.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_a_compiled_run_goes_on_uncompiled(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = ["--width", "4", "--epochs", "2", "--batch", "6", "--workers", "1"]
    status, _, errors = run_cli("train", image_folder, "--out", out, *settings, "--compile")
    assert status == 0
    assert "Compiling makes the first step take about a minute." in errors
    assert load_model(out / "model.pt").card.epochs == 2
    assert run_cli("train", image_folder, "--out", out, "--resume", "--workers", "1")[0] == 0


@pytest.mark.usefixtures("cache")
def test_without_a_compiler_it_says_what_to_do(
    run_cli: Cli, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/no/such/compiler",))
    settings = ["--width", "4", "--epochs", "1", "--batch", "6", "--workers", "1", "--compile"]
    status, _, errors = run_cli("train", image_folder, "--out", tmp_path / "run", *settings)
    assert status == 1
    message = errors.splitlines()[-1]
    assert message.startswith("Error: the network cannot be compiled (")
    assert "leave out --compile" in message
    assert "Traceback" not in errors
