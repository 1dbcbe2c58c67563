"""Times and peak memory of an export: exponentials, the rest of freezing, proofs, emission.

    python benchmarks/freeze_times.py [DEPTHxWIDTH ...]

Networks for 32 x 32 pixels and 10 classes with random weights, each in a process of its own, whose
peak memory is what Linux tells, libraries and check included.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipdeploy.exporters import freeze
from lipdeploy.exporters.export import export_model
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.checkpoint import ModelCard, TrainedModel, save_model
from lipdeploy.training.lipconvnet import LipConvNet

SHAPES = ("5x32", "15x32")
EXPONENTIAL = freeze.skew_exponential
exponential_seconds: list[float] = []


def timed_exponential(blocks: NDArray[Any]) -> NDArray[Any]:
    """The exponential, its time written down."""
    start = time.perf_counter()
    rotations = EXPONENTIAL(blocks)
    exponential_seconds.append(time.perf_counter() - start)
    return rotations


def random_model(depth: int, width: int) -> TrainedModel:
    """What training would leave, with the weights that it begins with."""
    torch.manual_seed(0)
    network = LipConvNet(Architecture(32, 10, width, depth), torch.full((3,), 120.0)).eval()
    card = ModelCard(tuple("0123456789"), "random", "", 0)
    return TrainedModel(network, card, torch.zeros(1, 3, 32, 32))


def measure(depth: int, width: int) -> None:
    """Export one network and print a line."""
    freeze.skew_exponential = timed_exponential
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.pt", Path(folder) / "model.onnx"
        model = random_model(depth, width)
        parameters = 4 * sum(p.numel() for p in model.network.parameters())
        save_model(model, source)
        start = time.perf_counter()
        seconds = export_model(source, target, ExportOptions()).seconds
        total, size = time.perf_counter() - start, target.stat().st_size
    exponentials = sum(exponential_seconds)
    rest = seconds["exponentials"] + seconds["freeze"] - exponentials
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"LipConvNet-{depth}, {width} channels: exponentials {exponentials:.2f} s, "
        f"rest of freezing {rest:.2f} s, proofs {seconds['prove']:.2f} s, "
        f"emission {seconds['emit']:.2f} s, check {seconds['check']:.2f} s, "
        f"export in all {total:.2f} s; engine {size:,} bytes, "
        f"parameters {parameters:,} bytes; peak memory {memory:.2f} GiB"
    )


def main() -> None:
    """Print a line for each network."""
    shapes = sys.argv[1:] or SHAPES
    if len(shapes) == 1:
        depth, width = map(int, shapes[0].split("x"))
        measure(depth, width)
        return
    print(f"{torch.get_num_threads()} threads, numpy {np.__version__}", flush=True)
    for shape in shapes:
        subprocess.run([sys.executable, __file__, shape], check=True)


if __name__ == "__main__":
    main()
