"""Measuring candidates on this machine, once: `lipdeploy export --tune`."""

import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from lipdeploy.errors import OutputError
from lipdeploy.exporters.onnx_layer import INPUT, input_shape, layer_graph
from lipdeploy.exporters.plan import Choice, LayerShape, Target
from lipdeploy.files import cache_folder, write_atomically
from lipdeploy.runtimes import hint_for
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.versions import installed_version

RUNS, SECONDS = 31, 0.3
"""At most so many runs of a layer, or so long."""


def default_cache() -> Path:
    """Where measurements of this machine are kept."""
    return cache_folder() / "tuning.json"


class Tuner:
    """Seconds of a layer, measured with ONNX Runtime on the CPU; remembers what it has measured.

    Args:
        cache: a JSON file; a missing or damaged one is begun anew, and where it cannot be written
            nothing is remembered.
        announce: told what is being measured.
    """

    def __init__(
        self, cache: Path | None = None, announce: Callable[[str], None] = lambda text: None
    ) -> None:
        self._cache, self._announce = cache or default_cache(), announce
        self._known = _read(self._cache)
        self.measured = 0

    def __call__(self, shape: LayerShape, choice: Choice, target: Target) -> float:
        """Median seconds for a batch."""
        what = f"{shape} {choice} {target} {_nodes(shape, choice, target)}"
        key = f"{_machine()} {hint_for(target.batch)} {what}"
        if key not in self._known:
            channels = f"{shape.in_channels} to {shape.out_channels} channels"
            self._announce(f"tune: {shape.grid} x {shape.grid}, {channels}, {choice}")
            self._known[key] = _measure(shape, choice, target)
            self.measured += 1
            self._remember()
        return self._known[key]

    def _remember(self) -> None:
        with suppress(OSError, OutputError):
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(json.dumps(self._known, indent=1).encode(), self._cache)


def _read(cache: Path) -> dict[str, float]:
    try:
        values = json.loads(cache.read_text())
        return {str(key): float(value) for key, value in values.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _machine() -> str:
    """What a measurement depends on besides the layer."""
    engine = installed_version("onnxruntime") or installed_version("onnxruntime-gpu")
    return f"{platform.node()} {platform.machine()} x{os.cpu_count()} onnxruntime {engine}"


def _nodes(shape: LayerShape, choice: Choice, target: Target) -> str:
    """A hash of the nodes of a layer, which another version of lipdeploy may emit otherwise."""
    nodes = layer_graph(shape, choice, target).graph.node
    return hashlib.sha256(b"".join(node.SerializeToString() for node in nodes)).hexdigest()


def _measure(shape: LayerShape, choice: Choice, target: Target) -> float:
    model = layer_graph(shape, choice, target)
    data, hint = bytes(model.SerializeToString()), hint_for(target.batch)
    runtime = OnnxRuntime(data, "cpu", hint=hint)
    outputs = [output.name for output in model.graph.output]
    generator = np.random.default_rng(0)
    inputs = {
        INPUT: generator.normal(size=input_shape(shape, choice, target.batch)).astype(np.float32)
    }
    times: list[float] = []
    while len(times) < RUNS and sum(times) < SECONDS:
        start = time.perf_counter()
        runtime.outputs(outputs, inputs)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times)
