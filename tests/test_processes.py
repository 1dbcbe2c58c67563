"""Two processes that train one network, started by torchrun as a user does."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Silent, ignore, write_image_folder

from lipdeploy import files
from lipdeploy.exporters.validation import certified_shares
from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.run_folder import read_checkpoint
from lipdeploy.training.session import TrainingRequest, prepare

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

OPTIONS = {"batch_size": 8, "validation": 0.2, "learning_rate": 0.05, "curvature": 0.01}
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TWO_PROCESSES += ["--nproc-per-node", "2"]
TOLERANCE = {"rtol": 1e-3, "atol": 1e-5}


class Place:
    """A dataset, and a folder for each run on it."""

    def __init__(self, root: Path) -> None:
        self.root, self.data = root, write_image_folder(root / "tiny", side=8, count=15)
        self.environment = os.environ | {
            "XDG_CACHE_HOME": str(root / "cache"),
            "OMP_NUM_THREADS": "1",
            "TORCHELASTIC_ERROR_FILE": "",
        }

    def command(self, name: str, epochs: int | None, *more: str) -> list[str]:
        """Train with two processes; go on where no epochs are given."""
        start = [*TWO_PROCESSES, "-m", "lipdeploy", "train", str(self.data)]
        start += ["--out", name, "--device", "cpu", "--workers", "1"]
        if epochs is None:
            return [*start, "--resume", *more]
        new = f"--width 4 --head mlp --epochs {epochs} --batch 8 --validation 0.2 --lr 0.05"
        return [*start, *new.split(), "--curvature", "0.01", *more]

    def start(
        self, name: str, epochs: int | None = None, *more: str, folder: str = "runs"
    ) -> subprocess.Popen[str]:
        """Begin such a run in a folder of that name."""
        return self.started(self.command(name, epochs, *more), folder)

    def started(self, command: list[str], folder: str = "runs") -> subprocess.Popen[str]:
        """A command that runs in a folder of that name."""
        (self.root / folder).mkdir(exist_ok=True)
        return subprocess.Popen(
            command,
            cwd=self.root / folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def request(
        self, name: str, epochs: int, network: dict[str, str] | None = None, **more: object
    ) -> TrainingRequest:
        """Such a run in a folder of that name."""
        return TrainingRequest(
            dataset=str(self.data),
            data=Path("data"),
            out=self.root / "runs" / name,
            image_size=None,
            device="cpu",
            workers=1,
            network={"width": 4, "head": "mlp"} | (network or {}),
            options={"epochs": epochs, **OPTIONS, **more},
            command="",
        )

    def alone(
        self, name: str, epochs: int, *, resume: bool = False, until: int = 1000, **more: Any
    ) -> Path:
        """The same run in this process, up to an epoch, with its images certified."""
        request = self.request(name, epochs, **more)
        run = prepare(request, resume=resume, progress=ignore, note=ignore)
        run.certify = certified_shares

        class Stop(Silent):
            def epoch(self, metrics: object) -> None:
                if run.finished_epochs >= until:
                    run.stop_after_epoch()

        run.run(Stop())
        return request.out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield Place(root)


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Let nothing of a run survive a test that fails."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    with ended(process):
        output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def own_errors(text: str) -> int:
    """Lines of lipdeploy's, not of torchrun's report."""
    return sum(line.startswith("Error: ") for line in text.splitlines())


def worker(launcher: int, rank: int) -> int:
    """The process of that rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"no process of rank {rank}")


def wait_for_epoch(process: subprocess.Popen[str], out: Path, epoch: int) -> None:
    end = time.monotonic() + 60
    while not (out / "metrics.csv").is_file() or len(metrics(out)) < epoch:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def metrics(out: Path) -> list[list[float]]:
    """Rows of metrics.csv, without epoch and seconds."""
    lines = (out / "metrics.csv").read_text().splitlines()[1:]
    return [[float(value) for value in line.split(",")[2:]] for line in lines]


def assert_close(a: Path, b: Path) -> None:
    first, second = (load_model(path / "model.pt").network.state_dict() for path in (a, b))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], **TOLERANCE, msg=name)
    found, expected = torch.tensor(metrics(a)), torch.tensor(metrics(b))
    torch.testing.assert_close(found, expected, **TOLERANCE, equal_nan=True)


def test_two_processes_train_the_network_of_one_and_the_same_bytes_again(place: Place) -> None:
    runs = [place.start("run", epochs=3, folder=folder) for folder in ("first", "second")]
    for status, output, errors in map(outcome, runs):
        assert status == 0, errors
        assert output.count("Trained: ") == 1
        assert output.count("epoch   3/3") == 1
        assert "steps of 8 images, 4 at a time in each of 2 processes" in errors
    first, second = place.root / "first" / "run", place.root / "second" / "run"
    assert_close(first, place.alone("one", 3))
    assert (first / "model.pt").read_bytes() == (second / "model.pt").read_bytes()
    assert (first / "checkpoint.pt").read_bytes() == (second / "checkpoint.pt").read_bytes()
    names = {"checkpoint.previous.pt", "checkpoint.pt", "curves.png", "metrics.csv", "model.pt"}
    assert {path.name for path in first.iterdir()} == names


def test_averages_choice_certificates_and_parts_are_those_of_one_process(place: Place) -> None:
    """Also where one process began and two go on."""
    asked = ["--ema", "0.9", "--keep", "best", "--certify-every", "1", "--accumulate", "2"]
    chosen = {"ema": 0.9, "keep": "best", "certify_every": 1, "batch_size": 12}
    turned = place.alone("turned", 4, until=2, **chosen)
    process = place.start("joined", 4, *asked, "--batch", "12")
    status, _, errors = outcome(place.start("turned", None, "--accumulate", "2"))
    assert status == 0, errors
    status, output, errors = outcome(process)
    assert status == 0, errors
    found = place.root / "runs" / "joined"
    expected = place.alone("joined-alone", 4, **chosen)
    assert_close(found, expected)
    assert_close(turned, expected)
    card, other = (load_model(path / "model.pt").card for path in (found, expected))
    assert card.epochs == other.epochs
    assert f"model.pt holds epoch {card.epochs}, the best by validation" in errors
    assert output.count("certified at 36, 72, 108/255") == 4
    state = read_checkpoint(found, ignore).state
    assert state.average["n_averaged"] == 4 * 2
    rows = metrics(found)
    assert state.best["score"] == max(row[5] for row in rows) == rows[card.epochs - 1][5]
    assert not torch.tensor(rows).isnan().any()


def test_other_kinds_of_layers_train_alike_too(place: Place) -> None:
    """Without shifts: what fills a shifted image is 0 after the mean is taken off, local layers
    begin without biases, and rounding decides which of two zeros is the larger."""
    learned = {"activation": "householder", "pooling": "projection"}
    kinds = {layer: learned | {"layer": layer} for layer in ("bcop", "cayley", "sll")}
    asked = [
        asdict(place.request(layer, 2, network=network, shift=0, accumulate=2))
        for layer, network in kinds.items()
    ]
    listed = place.root / "kinds.json"
    listed.write_text(json.dumps(asked, default=str))
    script = str(Path(__file__).with_name("train_in_turns.py"))
    status, _, errors = outcome(place.started([*TWO_PROCESSES, script, str(listed)]))
    assert status == 0, errors
    for layer, network in kinds.items():
        out = place.root / "runs" / layer
        assert load_model(out / "model.pt").card.options["accumulate"] == 2
        assert_close(out, place.alone(f"{layer}-alone", 2, network=network, shift=0))


def test_a_rehearsal_is_printed_once(place: Place) -> None:
    status, output, errors = outcome(place.start("dry", 2, "--dry-run", "--recipe", "quick"))
    assert (status, errors) == (0, "")
    assert sum(line.startswith("memory") for line in output.splitlines()) == 1
    assert not (place.root / "runs" / "dry").exists()


def test_one_two_and_one_processes_go_on_from_each_other_even_after_a_kill(place: Place) -> None:
    epochs = 300
    out = place.alone("turns", epochs, until=1)
    process = place.start("turns")
    with ended(process):
        wait_for_epoch(process, out, 3)
        os.kill(worker(process.pid, 1), signal.SIGKILL)
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - began < 30
    assert "another process of this run failed or was ended" in errors
    assert own_errors(errors) == 1
    assert "--resume" in errors
    with files.only_writer(out, "training into", "--out"):
        found = read_checkpoint(out, ignore)
    done = found.state.finished_epochs
    assert found.is_last
    assert done >= 2
    place.alone("turns", epochs, resume=True, until=done + 1)
    assert_close(out, place.alone("undisturbed", epochs, until=done + 1))


def test_control_c_at_one_process_stops_all_after_the_epoch(place: Place) -> None:
    epochs = 300
    process = place.start("gentle", epochs)
    out = place.root / "runs" / "gentle"
    with ended(process):
        wait_for_epoch(process, out, 1)
        os.kill(worker(process.pid, 1), signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    done = read_checkpoint(out, ignore).state.finished_epochs
    assert process.returncode != 0
    assert f"Stopped; gentle/model.pt holds epoch {done}." in output
    assert "torchrun --nproc-per-node 2 -m lipdeploy train" in output
    assert own_errors(errors) == 0
    assert 1 <= done < epochs
    assert len(metrics(out)) == done
    first, second = (
        load_model(p / "model.pt") for p in (out, place.alone("g", epochs, until=done))
    )
    for name, value in first.network.state_dict().items():
        torch.testing.assert_close(value, second.network.state_dict()[name], **TOLERANCE)


def test_a_full_disk_ends_all_processes_with_one_line(place: Place) -> None:
    """No file of this process may be larger than 8 KiB: the first checkpoint is."""
    out = place.root / "runs" / "full"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 10, before[1]))
    try:
        process = place.start("full", epochs=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    status, output, errors = outcome(process)
    assert status != 0
    assert own_errors(errors) == 1
    assert "checkpoint.pt: cannot be written (File too large); make room" in errors
    assert output == ""
    assert list(out.iterdir()) == []
