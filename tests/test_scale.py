"""Shares of a batch, accumulated gradients, streamed images, memory: one process shows them."""

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Silent, ignore, make_network, make_trainer, write_image_folder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lipdeploy import memory
from lipdeploy.datasets import scan_folder
from lipdeploy.errors import DatasetError, TrainingError, UsageError
from lipdeploy.training import loading
from lipdeploy.training.data import Dataset, load_folder
from lipdeploy.training.decoding import AHEAD, decode_list, decode_lists
from lipdeploy.training.distributed import ALONE, Processes
from lipdeploy.training.learner import Learner
from lipdeploy.training.loading import stream_folder
from lipdeploy.training.loop import Trainer
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.run_folder import read_checkpoint
from lipdeploy.training.sampling import Part, Share, channel_mean, epoch_parts
from lipdeploy.training.session import TrainingRequest, prepare

Cli = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("cache")


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8))
def test_shares_cover_every_batch_once(part: int, parts: int, size: int) -> None:
    batch = part * parts * size
    shares = [Share(batch, parts, Processes(rank, size)) for rank in range(size)]
    covered = [i for share in shares for piece in share.slices() for i in range(batch)[piece]]
    assert covered == list(range(batch))
    assert all(share.part_size == part for share in shares)


@given(st.integers(1, 100), st.integers(1, 4), st.integers(1, 5))
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest(
    batch: int, parts: int, size: int
) -> None:
    pieces = parts * size
    if batch % pieces == 0:
        return
    with pytest.raises(UsageError, match="does not divide") as refused:
        Share(batch, parts, Processes(0, size))
    named = int(str(refused.value).split("--batch ")[1])
    possible = [number for number in range(1, batch + pieces + 1) if number % pieces == 0]
    assert named in possible
    assert abs(named - batch) == min(abs(number - batch) for number in possible)


def test_every_process_has_a_gpu_of_its_own() -> None:
    assert ALONE.device("cuda") == "cuda"
    assert ALONE.device("cuda:1") == "cuda:1"
    assert Processes(5, 8, 1, 4).device("cuda") == "cuda:1"
    assert Processes(1, 2).device("cpu") == "cpu"
    with pytest.raises(UsageError, match="one GPU for 2 processes; give cuda"):
        Processes(1, 2).device("cuda:1")


def drawn(share: Share) -> list[Part]:
    return list(epoch_parts(13, share, 2, torch.Generator().manual_seed(0)))


def test_processes_together_draw_what_one_draws() -> None:
    whole = drawn(Share(6, 1))
    shares = [drawn(Share(6, 3, Processes(rank, 2))) for rank in range(2)]
    assert len(whole) == 2
    for step, expected in enumerate(whole):
        parts = [part for share in shares for part in share[3 * step : 3 * step + 3]]
        for name in ("down", "right", "flipped"):
            found = torch.cat([getattr(part.moves, name) for part in parts])
            assert torch.equal(found, getattr(expected.moves, name))
        assert torch.equal(torch.cat([part.indices for part in parts]), expected.indices)


def gradients(
    head: str, padding: str, accumulate: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients and buffers after two steps on the same twelve images, in float64."""
    network = make_network(head=head, padding=padding).double().train()
    options = TrainingOptions(accumulate=accumulate, curvature=0.5, learning_rate=0.01)
    learner = Learner(network, options, 10, ALONE)
    generator = torch.Generator().manual_seed(0)
    pixels = 255 * torch.rand(12, 3, 8, 8, dtype=torch.float64, generator=generator)
    labels = torch.arange(12) % 3
    size = 12 // accumulate
    for _ in range(2):
        tally = learner.gradient(zip(pixels.split(size), labels.split(size), strict=True))
        found = {name: p.grad.clone() for name, p in network.named_parameters()}
        learner.step()
    found["loss"] = torch.tensor(tally.mean_loss)
    return found, dict(network.named_buffers())


@pytest.mark.parametrize("padding", ["circular", "zero"])
@pytest.mark.parametrize("head", ["linear", "lln", "mlp"])
def test_the_gradient_in_parts_is_that_of_the_whole_batch(head: str, padding: str) -> None:
    """And the kernels take one step of their power iteration a step, not one a part."""
    whole = gradients(head, padding, 1)
    for accumulate in (2, 3):
        for expected, found in zip(whole, gradients(head, padding, accumulate), strict=True):
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_evaluation_changes_nothing(small: Dataset, tmp_path: Path) -> None:
    run = make_trainer(small, tmp_path / "run", head="mlp", curvature=0.1)
    before = copy.deepcopy(run.network.state_dict())
    first = run.evaluate(run.validation)
    assert run.evaluate(run.validation) == first
    for name, value in run.network.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("failure", ["torch", "python"])
def test_a_step_that_does_not_fit_goes_on_in_smaller_parts(
    small: Dataset, tmp_path: Path, failure: str
) -> None:
    class Greedy(Silent):
        def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
            if (epoch, step) == (2, 1):
                torch.empty(1 << 60) if failure == "torch" else bytearray(1 << 60)

    run = make_trainer(small, tmp_path / "run", epochs=3)
    advice = r"not enough memory for 6 images at a time; go on with --resume --accumulate 2,"
    with pytest.raises(TrainingError, match=advice):
        run.run(Greedy())
    found = read_checkpoint(run.folder, ignore)
    again = make_trainer(small, run.folder, epochs=3, accumulate=2)
    again.resume(found.state, seen=found.seen)
    assert again.finished_epochs == 1
    again.run(Silent())
    undisturbed = make_trainer(small, tmp_path / "undisturbed", epochs=3)
    undisturbed.run(Silent())
    assert_close(again, undisturbed)


def assert_close(a: Trainer, b: Trainer) -> None:
    expected = b.network.state_dict()
    for name, value in a.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def assert_same(a: Trainer, b: Trainer) -> None:
    expected = b.network.state_dict()
    for name, value in a.network.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_resumed_run_can_change_the_number_of_parts(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = ["--width", "4", "--epochs", "1", "--batch", "6", "--workers", "1"]
    status, _, errors = run_cli("train", image_folder, "--out", out, *settings, "--accumulate", "4")
    assert (status, "--accumulate 4); take --batch 4" in errors) == (2, True)
    assert not out.exists()
    assert run_cli("train", image_folder, "--out", out, *settings)[0] == 0
    again = ["--out", out, "--resume", "--workers", "1", "--accumulate", "3", "-v"]
    status, _, errors = run_cli("train", image_folder, *again)
    assert (status, "accumulate=3" in errors, "2 at a time" in errors) == (0, True, True)


def prepared(
    dataset: Path, out: Path, *, stream: bool, image_size: int | None = None, **options: object
) -> Trainer:
    """A run of two epochs."""
    defaults = {"epochs": 2, "batch_size": 6, "validation": 0.2, "learning_rate": 0.05}
    request = TrainingRequest(
        dataset=str(dataset),
        data=Path("data"),
        out=out,
        image_size=image_size,
        device="cpu",
        workers=1,
        network={"width": 4},
        options=defaults | options,
        command="",
        stream=stream,
    )
    return prepare(request, resume=False, progress=ignore, note=ignore)


@pytest.mark.parametrize("size", [None, 6], ids=["whole", "resized"])
def test_streamed_images_train_the_same_network_bit_for_bit(
    image_folder: Path, tmp_path: Path, size: int | None
) -> None:
    larger = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(larger).save(image_folder / "train" / "dark" / "larger.png")
    held, streamed = (
        prepared(image_folder, tmp_path / f"run{stream}", stream=stream, image_size=size)
        for stream in (False, True)
    )
    for run in (held, streamed):
        run.run(Silent())
    assert_same(held, streamed)
    assert torch.equal(held.examples.float(), streamed.examples.float())
    rows = [(run.folder / "metrics.csv").read_text().splitlines() for run in (held, streamed)]
    without_seconds = [[line.split(",")[2:] for line in table] for table in rows]
    assert without_seconds[0] == without_seconds[1]


def test_a_streamed_run_is_resumed_as_one_and_knows_its_files(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = ["--width", "4", "--epochs", "1", "--batch", "6", "--workers", "1", "--stream"]
    assert run_cli("train", image_folder, "--out", out, *settings)[0] == 0
    assert not (tmp_path / "cache").exists(), "the decoded images were kept"
    assert read_checkpoint(out, ignore).state.data_sha256.startswith("files:")
    moved = image_folder.rename(tmp_path / "elsewhere")
    again = ["--out", out, "--resume", "--workers", "1"]
    assert run_cli("train", moved, *again)[0] == 0
    assert not (tmp_path / "cache").exists()
    status, _, errors = run_cli("train", moved, *again, "--stream")
    assert (status, "leave out --stream: with --resume" in errors) == (2, True)
    next((moved / "train" / "dark").iterdir()).rename(moved / "train" / "dark" / "other.png")
    status, _, errors = run_cli("train", moved, *again)
    assert (status, "other images" in errors) == (1, True)
    status, _, errors = run_cli("train", "cifar10", "--stream", "--out", tmp_path / "none")
    assert (status, "--stream is for folders" in errors) == (2, True)


def test_images_that_are_too_many_for_the_memory_are_streamed(
    run_cli: Cli, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 24 * 3 * 8 * 8
    settings = ["--width", "4", "--epochs", "1", "--batch", "6", "--workers", "1"]
    for free, is_streamed in ((2 * needed, False), (2 * needed - 1, True), (None, False)):
        monkeypatch.setattr(loading, "free_memory", lambda free=free: free)
        out = tmp_path / f"run{free}"
        status, _, errors = run_cli("train", image_folder, "--out", out, *settings)
        assert status == 0
        assert ("decoded while training, as with --stream" in errors) == is_streamed
        state = read_checkpoint(out, ignore).state
        assert state.data_sha256.startswith("files:") == is_streamed


def test_free_memory_is_that_of_the_machine_or_of_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = memory.free_memory()
    assert whole is not None
    assert whole > 1 << 20
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert memory.free_memory() == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 10\ninactive_file 1000\n")
    assert memory.free_memory() == 5000 * 1024
    (tmp_path / "memory.max").write_text("10000\n")
    assert memory.free_memory() == 7000


@pytest.mark.parametrize("size", [64, 224])
def test_streams_of_larger_photographs_hold_what_memory_holds(tmp_path: Path, size: int) -> None:
    root = write_image_folder(tmp_path / "photos", side=250, count=3)
    held = load_folder(root, size, 1, ignore).images
    folder = scan_folder(root, "train")
    for workers in (1, 2):
        streamed = stream_folder(root, folder, size, workers).images
        wanted = [torch.tensor([4, 0]), torch.tensor([1, 2, 3])]
        for (pixels, labels), indices in zip(streamed.read(wanted), wanted, strict=True):
            assert torch.equal(pixels, held.pixels[indices].float())
            assert torch.equal(labels, held.labels[indices])
        assert torch.equal(channel_mean(streamed), channel_mean(held))


def test_photographs_of_224_pixels_train_from_their_files(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path / "photos", side=230, count=1)
    options = {"epochs": 1, "batch_size": 2, "accumulate": 2, "validation": 0}
    run = prepared(root, tmp_path / "run", stream=True, image_size=224, **options)
    run.run(Silent())
    assert run.finished_epochs == 1
    assert run.network.architecture.image_size == 224


def test_an_image_that_cannot_be_read_while_training_is_named(
    image_folder: Path, tmp_path: Path
) -> None:
    run = prepared(image_folder, tmp_path / "run", stream=True)
    for path in (image_folder / "train" / "dark").iterdir():
        path.write_text("no image")
    with pytest.raises(DatasetError, match=r"dark.*remove or replace the image"):
        run.run(Silent())


def test_decoding_is_never_far_ahead(image_folder: Path) -> None:
    files, taken = scan_folder(image_folder, "train").sources, []

    def lists() -> Iterator[list[Path]]:
        for number in range(1000):
            taken.append(number)
            yield [files[number % 24]]

    with closing(decode_lists(lists(), 8, 2)) as decoded:
        for number in range(3):
            assert np.array_equal(next(decoded), decode_list([files[number]], 8))
        assert len(taken) <= 3 + 2 * AHEAD


DECODER = """
import os, sys
from pathlib import Path
from lipdeploy.training.decoding import decode_lists

if __name__ == "__main__":
    for _ in decode_lists([[Path(path)] for path in sys.argv[1:]], 8, 2):
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
        print(children, flush=True)
        input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for children")
def test_decoding_processes_end_with_the_one_that_started_them(image_folder: Path) -> None:
    """Whether it is killed, or one of them, long before all is decoded."""
    files = scan_folder(image_folder, "train").sources * 20
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    script = image_folder / "decoder.py"
    script.write_text(DECODER)
    for kills_parent in (True, False):
        process = subprocess.Popen([sys.executable, script, *files], text=True, **pipes)
        children = [int(child) for child in process.stdout.readline().split()]
        assert len(children) >= 2
        if kills_parent:
            process.kill()
        else:
            os.kill(children[-1], signal.SIGKILL)
        _, errors = process.communicate("\n" * len(files), timeout=30)
        assert kills_parent or "decoding processes was killed" in errors.splitlines()[-1]
        wait_until(lambda: not any(is_alive(child) for child in children))  # noqa: B023


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
