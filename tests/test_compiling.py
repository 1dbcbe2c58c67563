"""Compiled passes change a training by rounding only."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ignore, make_network
from torch import distributed
from torch._dynamo import config
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.compiling import compiling
from lipdeploy.training.distributed import ALONE
from lipdeploy.training.metrics import EpochMetrics
from lipdeploy.training.session import TrainingRequest, prepare

Cli = Callable[..., tuple[int, str, str]]

HEADERS = Path(sysconfig.get_path("include")) / "Python.h"
HAS_MASKS = pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="has no masks")
CAN_COMPILE = HEADERS.is_file() and any(map(shutil.which, ("g++", "clang++")))


@pytest.fixture(autouse=True)
def compiler_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that was compiled before is used, nor afterwards."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def trained(request: TrainingRequest, *, resume: bool = False, epochs: int = 2) -> Path:
    """The model of a run, stopped after some of its epochs."""
    trainer = prepare(request, resume=resume, progress=ignore, note=ignore)

    class Stop:
        def step(self, *told: object) -> None:
            pass

        def epoch(self, metrics: EpochMetrics) -> None:
            if trainer.finished_epochs >= epochs:
                trainer.stop_after_epoch()

    trainer.run(Stop())
    return trainer.model_path


@pytest.mark.slow
@pytest.mark.skipif(not CAN_COMPILE, reason="needs a C++ compiler and the headers of Python")
@pytest.mark.usefixtures("cache")
def test_a_compiled_run_that_goes_on_uncompiled_is_the_plain_run(
    image_folder: Path, tmp_path: Path
) -> None:
    plain = TrainingRequest(
        dataset=str(image_folder),
        data=Path("data"),
        out=tmp_path / "plain",
        image_size=None,
        device="cpu",
        workers=1,
        network={"width": 4},
        options={"epochs": 2, "batch_size": 8, "accumulate": 2, "learning_rate": 0.05},
        command="",
    )
    compiled = replace(plain, out=tmp_path / "compiled", compiled=True)
    trained(compiled, epochs=1)
    assert counters["stats"]["unique_graphs"] > 0
    mine = trained(replace(compiled, compiled=False), resume=True)
    state, expected = (load_model(path).network.state_dict() for path in (mine, trained(plain)))
    assert list(state) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_gradients_of_a_network_over_processes_are_traced_whole(tmp_path: Path) -> None:
    """Of all its layers, in more buckets than one, by dynamo's front end alone."""
    networks = [make_network(image_size=32, depth=15, seed=1).train() for _ in range(2)]
    pixels = torch.rand(2, 3, 32, 32) * 255
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        with compiling(ALONE), config.patch(fail_on_recompile_limit_hit=True):
            traced = torch.compile(networks[0], backend="eager", dynamic=False)
            parallel = DistributedDataParallel(traced, bucket_cap_mb=0.001)
            parallel(pixels).square().sum().backward()
    finally:
        distributed.destroy_process_group()
    networks[1](pixels).square().sum().backward()
    for mine, plain in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-3, atol=1e-5)
    assert counters["stats"]["unique_graphs"] > 0


@HAS_MASKS
def test_control_c_ends_no_compiler() -> None:
    with compiling(ALONE):
        compiler = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
        os.kill(compiler.pid, signal.SIGINT)
        assert compiler.wait(60) == 0


HEARS = """
import os, signal, time
from lipdeploy.training.compiling import compiling
from lipdeploy.training.distributed import ALONE
heard = []
signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
with compiling(ALONE):
    os.kill(os.getpid(), signal.SIGINT)
    end = time.monotonic() + 20
    while not heard and time.monotonic() < end:
        time.sleep(0.001)
    print("heard" if heard else "not heard")
"""


@HAS_MASKS
def test_control_c_is_heard_while_compiling() -> None:
    """In a process that has no other thread to hear it."""
    ended = subprocess.run(
        [sys.executable, "-c", HEARS], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "heard\n"


@pytest.mark.usefixtures("cache")
def test_without_a_compiler_it_says_what_to_do(
    run_cli: Cli, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config as compiler

    monkeypatch.setattr(compiler.cpp, "cxx", ("/no/such/compiler",))
    settings = ["--width", "4", "--epochs", "1", "--batch", "6", "--workers", "1", "--compile"]
    status, _, errors = run_cli("train", image_folder, "--out", tmp_path / "run", *settings)
    assert status == 1
    assert "Compiling: the first step takes a few minutes" in errors
    message = errors.splitlines()[-1]
    assert message.startswith("Error: the network cannot be compiled (")
    assert "leave out --compile, or install a C++ compiler" in message
    assert "Traceback" not in errors


def test_a_rehearsal_is_not_compiled(run_cli: Cli, image_folder: Path) -> None:
    status, _, errors = run_cli("train", image_folder, "--dry-run", "--compile")
    assert (status, "leave out --compile" in errors) == (2, True)
