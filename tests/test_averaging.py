"""Averaged weights: what they are, that they survive a crash, that their network is as sound."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import Silent, ignore, make_network, make_trainer

from lipdeploy.errors import TrainingError, UsageError
from lipdeploy.exporters.freeze import freeze
from lipdeploy.training.averaging import WARM_UP, WeightAverage
from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.data import Dataset
from lipdeploy.training.lipconvnet import INPUT_GAIN, LipConvNet
from lipdeploy.training.loop import Trainer
from lipdeploy.training.run_folder import read_checkpoint
from lipdeploy.training.run_state import CHECKPOINT_FORMAT, RunState
from lipdeploy.training.skew import SkewKernel
from lipdeploy.training.tensor_file import read_tensors

Cli = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("cache")


def shaken(network: LipConvNet, seed: int) -> None:
    """Move every weight a little, and the power iteration with it, as a step does."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    network.train()
    network(torch.rand(2, 3, 8, 8) * 255)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_follows_its_recursion(decay: float) -> None:
    network = make_network()
    average, expected = WeightAverage(network, decay), {}
    for step in range(20):
        shaken(network, step)
        average.update()
        kept = min(decay, (1 + step) / (WARM_UP + step)) if step else 0.0
        for name, value in network.state_dict().items():
            before = expected.get(name, value.double())
            expected[name] = kept * before + (1 - kept) * value.double()
    for name, value in average.network.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_without_a_decay_the_trained_network_is_the_average() -> None:
    network = make_network()
    average = WeightAverage(network, 0.0)
    average.update()
    assert average.network is network
    assert average.state_dict() == {}


@pytest.mark.parametrize("padding", ["circular", "zero"])
@pytest.mark.parametrize("head", ["linear", "lln", "mlp"])
def test_an_averaged_network_is_skew_and_as_sound_as_any(padding: str, head: str) -> None:
    network = make_network(padding=padding, head=head)
    average = WeightAverage(network, 0.9)
    for step in range(5):
        shaken(network, step)
        average.update()
    averaged = average.network.eval()
    kernels = [module for module in averaged.modules() if isinstance(module, SkewKernel)]
    for kernel in kernels:
        taps = kernel()
        assert torch.equal(taps, -taps.flip(0).transpose(1, 2))
    assert len(kernels) >= 4
    assert freeze(averaged).lipschitz_upper <= INPUT_GAIN / 255 * (1 + 1e-6)


def test_kernels_keep_their_norm_although_weights_and_scales_are_averaged_apart() -> None:
    network = make_network()
    average = WeightAverage(network, 0.9)
    for step in range(30):
        shaken(network, step)
        average.update()
    pairs = zip(network.modules(), average.network.eval().modules(), strict=True)
    for trained, averaged in pairs:
        if isinstance(trained, SkewKernel) and isinstance(averaged, SkewKernel):
            ratio = averaged().norm() / (trained().norm() + 1e-12)
            assert 0.5 < ratio < 1.2


def interrupted_and_resumed(small: Dataset, folder: Path, **options: object) -> Trainer:
    class Interrupt(Silent):
        def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
            if (epoch, step) == (3, 2):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(small, folder, **options).run(Interrupt())
    found = read_checkpoint(folder, ignore)
    state = found.state
    resumed = Trainer(small, state.architecture, state.options, folder, state.command)
    resumed.resume(state, seen=found.seen)
    resumed.run(Silent())
    return resumed


@pytest.mark.parametrize(
    "options",
    [
        {"ema": 0.9},
        {"keep": "best"},
        {"ema": 0.9, "keep": "best", "loss": "annealed", "certificate": 0.1},
    ],
    ids=str,
)
def test_a_resumed_run_leaves_the_same_bytes_as_an_undisturbed_one(
    small: Dataset, tmp_path: Path, options: dict[str, object]
) -> None:
    whole = make_trainer(small, tmp_path / "whole", **options)
    whole.run(Silent())
    resumed = interrupted_and_resumed(small, tmp_path / "broken", **options)
    assert whole.model_path.read_bytes() == resumed.model_path.read_bytes()
    assert whole.checkpoint_path.read_bytes() == resumed.checkpoint_path.read_bytes()


def test_the_model_file_holds_the_average_and_validation_is_of_it(
    small: Dataset, tmp_path: Path
) -> None:
    plain = make_trainer(small, tmp_path / "plain")
    run = make_trainer(small, tmp_path / "run", ema=0.9)
    plain.run(Silent())
    run.run(Silent())
    trained, held = run.network.state_dict(), load_model(run.model_path).network.state_dict()
    for name, value in plain.network.state_dict().items():
        assert torch.equal(trained[name], value), "averaging changed the training"
    assert not torch.equal(trained["head.linear.weight"], held["head.linear.weight"])
    for name, value in run.learner.average.network.state_dict().items():
        assert torch.equal(held[name], value)
    last = run.files.metrics.rows()[-1]
    assert last["validation_loss"] == pytest.approx(run.evaluate(run.validation)[0])
    assert last["validation_loss"] != plain.files.metrics.rows()[-1]["validation_loss"]
    assert load_model(run.model_path).card.options["ema"] == 0.9


def test_a_checkpoint_without_its_average_is_refused(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", ema=0.9, epochs=1)
    run.run(Silent())
    state = read_checkpoint(run.folder, ignore).state
    broken = [{}, {**state.average, "module.mean": torch.zeros(7)}]
    for average in broken:
        again = make_trainer(small, tmp_path / "again", ema=0.9, epochs=1)
        with pytest.raises(TrainingError, match="does not fit"):
            again.resume(replace(state, average=average), seen=None)


def test_checkpoints_and_models_of_older_versions_are_read(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=2)
    run.run(Silent())
    new = {"loss", "beta", "certificate", "ema", "keep", "certify_every", "recipe"}
    content = torch.load(run.checkpoint_path, weights_only=True)
    del content["average"], content["best"]
    content["options"] = {k: v for k, v in content["options"].items() if k not in new}
    torch.save(content, run.checkpoint_path)
    found = read_checkpoint(run.folder, ignore)
    assert found.state.options == run.options
    again = make_trainer(small, run.folder, epochs=2)
    again.resume(found.state, seen=found.seen)
    content = torch.load(run.model_path, weights_only=True)
    del content["card"]["options"]
    torch.save(content, run.model_path)
    assert load_model(run.model_path).card.options == {}


def test_states_of_other_kinds_are_refused(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", epochs=1, keep="best")
    run.run(Silent())
    content = torch.load(run.checkpoint_path, weights_only=True)
    for part in ("average", "best"):
        torch.save(content | {part: [1]}, tmp_path / "a.pt")
        with pytest.raises(Exception, match="damaged checkpoint"):
            RunState.of(read_tensors(tmp_path / "a.pt", CHECKPOINT_FORMAT))
    state = read_checkpoint(run.folder, ignore).state
    best = state.best
    wrong = [{"epoch": 0}, {"epoch": "1"}, {"score": None}, {"network": {}}]
    for change in wrong:
        again = make_trainer(small, tmp_path / "again", epochs=1, keep="best")
        with pytest.raises(TrainingError, match="does not fit"):
            again.resume(replace(state, best={**best, **change}), seen=None)


def test_the_option_is_kept_on_resume_and_validated(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    settings = ["--width", "4", "--epochs", "1", "--batch", "6", "--workers", "1"]
    status, _, errors = run_cli("train", image_folder, *settings, "--ema", "1.5")
    assert (status, errors.count("\n")) == (2, 1)
    out = ["--out", tmp_path / "run"]
    assert run_cli("train", image_folder, *out, *settings, "--ema", "0.99")[0] == 0
    status, _, errors = run_cli("train", image_folder, *out, "--resume", "--ema", "0.9")
    assert (status, "leave out --ema: with --resume" in errors) == (2, True)


def test_averages_need_no_second_training_state() -> None:
    """The average is a copy: a change of it does not reach the trained network."""
    network = make_network()
    before = copy.deepcopy(network.state_dict())
    average = WeightAverage(network, 0.9)
    average.update()
    with torch.no_grad():
        for parameter in average.network.parameters():
            parameter.zero_()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_best_epoch_needs_validation_images(small: Dataset, tmp_path: Path) -> None:
    for options in ({"keep": "best"}, {"certify_every": 2}):
        with pytest.raises(UsageError, match="needs validation images; set some aside"):
            make_trainer(small, tmp_path / "run", validation=0.0, **options)
