"""The engines that need a GPU, against float64: parity, canary with and without TF32, throughput.

    PYTHONPATH=benchmarks python benchmarks/gpu_check.py MODEL DATA

Ends with one line and status 1 where there is no usable GPU; what is installed besides the CUDA
provider of ONNX Runtime (TensorRT, torch with CUDA) is checked, the rest is named. The last line is
one JSON object, as that of `engines_check.py`.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from engines_check import Comparison, Way, batches, engines, summary, table

from lipdeploy.canary import canary_difference, check_canary
from lipdeploy.datasets import scan_folder
from lipdeploy.errors import ArithmeticMismatchError, LipdeployError
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.report.console import (
    plain_table,
    print_error,
    print_json,
    print_line,
    print_note,
    print_table,
)
from lipdeploy.runtimes import Array, Pixels, Runtime
from lipdeploy.runtimes.onnx import OnnxRuntime

WAYS = (
    Way("onnxruntime cuda, blocked", ExportOptions(), "onnxruntime", "cuda"),
    Way("onnxruntime cuda, any-order", ExportOptions(accumulation="any-order"), "auto", "cuda"),
    Way("torch cuda", ExportOptions(), "torch", "cuda"),
    Way("tensorrt", ExportOptions(engine="trt"), "auto", "auto"),
)
BATCHES = (1, 8, 64, 256)
CALLS = 50


class Tf32Runtime:
    """ONNX Runtime's CUDA provider as it comes: with TF32."""

    arithmetic = "float32"
    runs_graph = True

    def __init__(self, data: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        provider = ("CUDAExecutionProvider", {"use_tf32": "1"})
        self._session: Any = onnxruntime.InferenceSession(data, options, providers=[provider])
        self.description = f"onnxruntime {onnxruntime.__version__}, cuda, TF32 on"

    def run(self, pixels: Pixels) -> tuple[Array, Array]:
        """Map pixels (batch, 3, n, n), 0 ... 255, to features and logits."""
        found = self._session.run(["features", "logits"], {"pixels": pixels})
        features, logits = (value.astype(np.float64) for value in found)
        return features, logits


def median_seconds(runtime: Runtime, pixels: Pixels) -> float:
    """Of a call, after a few to warm up."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        runtime.run(pixels)
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:])


def print_throughput(compared: list[Comparison]) -> None:
    """Images a second for each batch size; one process, one call after the other."""
    shown = plain_table("engine", *(f">batch {size}, images/s" for size in BATCHES))
    random = np.random.default_rng(0)
    for one in compared:
        n = one.engine.network.image_size
        rates = []
        for size in BATCHES:
            pixels = random.integers(0, 256, (size, 3, n, n)).astype(np.float32)
            rates.append(f"{size / median_seconds(one.runtime, pixels):.0f}")
        shown.add_row(one.name, *rates)
    print_table(shown)


def print_canary(one: Comparison) -> bool:
    """Whether the canary passes strict float32 and refuses TF32."""
    check_canary(one.engine, one.runtime)
    strict = canary_difference(one.engine.network, one.runtime)
    loose = Tf32Runtime(one.engine.prepared)
    difference = canary_difference(one.engine.network, loose)
    exported = one.engine.manifest.canary
    print_line(f"canary: at the export {exported:.3g}, strict {strict:.3g}, TF32 {difference:.3g}")
    try:
        check_canary(one.engine, loose)
    except ArithmeticMismatchError as error:
        print_line(f"canary refuses TF32: {error}")
        return True
    print_line("canary does NOT refuse TF32")
    return False


def main() -> int:
    """Check, print; the exit status."""
    model, data = (Path(argument) for argument in sys.argv[1:])
    images = scan_folder(data, "test")
    with tempfile.TemporaryDirectory() as folder:
        compared = list(engines(model, Path(folder), WAYS))
        on_cuda = [one for one in compared if isinstance(one.runtime, OnnxRuntime)]
        if not on_cuda:
            print_error("ONNX Runtime has no usable GPU here; see the notes above")
            return 1
        for pixels in batches(images, on_cuda[0].engine.network.image_size):
            for one in compared:
                one.add(pixels)
        print_note(f"{len(images)} images of {data.name}")
        print_table(table(compared))
        try:
            refuses = print_canary(on_cuda[0])
        except LipdeployError as error:
            print_error(str(error))
            refuses = False
        print_throughput(compared)
    print_json(summary(compared) | {"canary_refuses_tf32": refuses})
    return 0 if refuses and all(one.is_ok for one in compared) else 1


if __name__ == "__main__":
    sys.exit(main())
