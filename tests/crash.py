"""Kills a training run at random moments and shows that nothing is lost: `make crash-test`.

Every life of the run is ended by kill -9: a fifth of them anywhere from the start of the process,
the others while it trains, half of these just after a file began to be written. After
each kill every file of the run must be whole, and the checkpoint no more than the running epoch
behind. At last the run is finished undisturbed, and must be, bit for bit, the run that nobody ever
touched.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from helpers import ignore, write_image_folder

from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.run_folder import read_checkpoint
from lipdeploy.training.run_state import CHECKPOINT_FORMAT, RunState
from lipdeploy.training.tensor_file import read_tensors

EPOCHS = 600


def command(data: Path, out: Path, processes: int, *more: str) -> list[str]:
    """The training command of both runs."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(launcher if processes > 1 else []), "-m", "lipdeploy", "train"]
    return [*start, str(data), "--out", str(out), *more, "-q"]


def options(epochs: int) -> list[str]:
    return f"--width 4 --epochs {epochs} --batch 6 --validation 0.2 --lr 0.05 --workers 1".split()


def victim(process: subprocess.Popen[bytes], processes: int) -> int:
    """The process, or, of several that it started, any one of them, as soon as all are there."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    started: list[str] = []
    while processes > 1 and len(started) < processes and process.poll() is None:
        started = children.read_text().split()
    return int(random.choice(started)) if started else process.pid


def rows(out: Path) -> list[dict[str, str]]:
    """metrics.csv without the column that differs between any two runs."""
    if not (out / "metrics.csv").is_file():
        return []
    with (out / "metrics.csv").open() as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


class Run:
    """The run that is killed again and again."""

    def __init__(self, data: Path, out: Path, processes: int, longest: float) -> None:
        self.data, self.out, self.processes, self.longest = data, out, processes, longest
        self.kills = {"while starting": 0, "while training": 0, "while writing": 0}
        self.finished = 0

    def live_and_die(self) -> None:
        """One life."""
        resume = ["--resume"] if (self.out / "checkpoint.pt").exists() else options(EPOCHS)
        process = subprocess.Popen(command(self.data, self.out, self.processes, *resume))
        kind = random.choices(list(self.kills), [2, 4, 4])[0]
        if kind == "while starting":
            time.sleep(random.uniform(0, 5))
        else:
            self._wait_for_an_epoch(process)
            time.sleep(random.uniform(0, self.longest))
        if kind == "while writing":
            self._wait_for_a_partial_file(process)
        if process.poll() is not None:
            sys.exit(f"the run ended by itself with status {process.returncode}; raise EPOCHS")
        os.kill(victim(process, self.processes), signal.SIGKILL)
        if process.wait(timeout=60) == 0:
            sys.exit("the run ended with status 0 although a process was killed")
        self.kills[kind] += 1
        self.check()

    def _wait_for_an_epoch(self, process: subprocess.Popen[bytes]) -> None:
        known = len(rows(self.out))
        while len(rows(self.out)) == known and process.poll() is None:
            time.sleep(0.01)

    def _wait_for_a_partial_file(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None and not list(self.out.glob(".*.partial")):
            pass

    def check(self) -> None:
        """Every file is whole, and at most the running epoch is lost."""
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            if (self.out / name).exists():
                RunState.of(read_tensors(self.out / name, CHECKPOINT_FORMAT))
        if (self.out / "model.pt").exists():
            load_model(self.out / "model.pt")
        if not (self.out / "checkpoint.pt").exists():
            assert not self.finished, "the checkpoint is gone"
            assert not (self.out / "model.pt").exists(), "a model that cannot be resumed"
            return
        finished = read_checkpoint(self.out, ignore).state.finished_epochs
        seen = len(rows(self.out))
        assert finished >= max(self.finished, seen - 1), f"{finished} of {seen} epochs are left"
        self.finished = finished


def assert_same_model(a: Path, b: Path) -> None:
    first, second = (load_model(path).network.state_dict() for path in (a, b))
    assert list(first) == list(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def main() -> None:
    """Kill, check, finish, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1, help="of the run; one is killed")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    data = write_image_folder(folder / "tiny", side=8)
    start = time.perf_counter()
    processes = arguments.processes
    subprocess.run(command(data, folder / "whole", processes, *options(EPOCHS)), check=True)
    # Lives are half as long on average, so all together use less than half of the epochs.
    longest = 0.8 * (time.perf_counter() - start) / arguments.kills
    run = Run(data, folder / "killed", processes, longest)
    while sum(run.kills.values()) < arguments.kills:
        run.live_and_die()
        print(f"{sum(run.kills.values())} kills, epoch {run.finished} of {EPOCHS}", flush=True)
    subprocess.run(command(data, run.out, processes, "--resume"), check=True)
    assert_same_model(folder / "whole" / "model.pt", run.out / "model.pt")
    assert rows(folder / "whole") == rows(run.out)
    shutil.rmtree(folder)
    counts = ", ".join(f"{count} {kind}" for kind, count in run.kills.items())
    print(
        f"seed {arguments.seed}: {sum(run.kills.values())} kills ({counts}), 0 checkpoints lost; "
        f"the network and the metrics after {EPOCHS} epochs are those of the undisturbed run, bit "
        f"for bit ({time.perf_counter() - start:.0f} s)"
    )


if __name__ == "__main__":
    main()
