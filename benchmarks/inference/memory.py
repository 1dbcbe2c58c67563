"""The most memory that an opponent needs: each alone, in a process of its own.

    python -m inference.memory KIND FILE PIXELS.npy

prints bytes: the largest resident memory of a call, weights included, beyond that of the libraries.
"""

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from inference.engines import ENGINE
from inference.opponents import Opponent, Pixels, Run, torch_run
from inference.plain import OPTIMISED, optimised_run
from lipdeploy.runtimes.onnx import OnnxRuntime

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """A field of the process's memory in bytes: VmRSS (now) or VmHWM (largest)."""
    (line,) = (row for row in STATUS.read_text().splitlines() if row.startswith(field))
    return 1024 * int(line.split()[1])


def open_saved(kind: str, path: Path) -> Run:
    """What `Opponent.save` wrote, ready to run."""
    if kind == OPTIMISED:
        return optimised_run(path.read_bytes())
    if kind == ENGINE:
        runtime = OnnxRuntime(path.read_bytes(), "cpu")
        return lambda pixels: runtime.run(pixels)[1].astype(np.float32)
    # Written by this benchmark a moment ago.
    return torch_run(torch.load(path, weights_only=False), kind)


def peak(kind: str, path: Path, pixels: Pixels) -> int:
    """Largest resident memory of two calls, beyond what is resident now, in bytes."""
    before = resident("VmRSS")
    run = open_saved(kind, path)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # forgets the largest so far, which is that of loading
    for _ in range(2):
        run(pixels)
    return resident("VmHWM") - before


def measured_peak(opponent: Opponent, pixels: Pixels) -> int | None:
    """`peak` in a process of its own; None where the system does not tell (it needs Linux)."""
    if not CLEAR.exists():
        return None
    with TemporaryDirectory() as folder:
        saved, images = Path(folder) / "opponent", Path(folder) / "pixels.npy"
        opponent.save(saved)
        np.save(images, pixels)
        command = [sys.executable, "-m", "inference.memory", opponent.kind, str(saved), str(images)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        finished = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return int(finished.stdout)


if __name__ == "__main__":
    print(peak(sys.argv[1], Path(sys.argv[2]), np.load(sys.argv[3])))
