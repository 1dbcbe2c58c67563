"""Timing several functions side by side, and what this machine can do at all.

Functions take turns, round after round, so that whatever else the machine does hits all alike.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper

TURN = 0.25
"""Seconds that a function is called for, again and again, in one turn."""

PAUSE = 0.005
"""Seconds between turns, in which the waiting threads of the one before fall asleep."""

LEAST_ROUNDS, MOST_ROUNDS = 5, 61

LEAST_PAIRS, PAIR_SECONDS = 3, 6.0
"""Of calls that alternate: at least so many pairs of either order, for about so long."""

LONGEST_CALL = 10.0
"""Seconds; what takes longer is not timed."""

MATMUL_SIDE, STREAM_BYTES = 1024, 1 << 28
MATMUL, STREAM = "MatMul", "memory read"

Functions = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Timing:
    """Seconds of a call, one number a round (the median of a turn)."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the rounds, seconds."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile over the rounds, seconds."""
        first, _, third = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return first, third

    def over(self, other: "Timing") -> float:
        """Median over the rounds of how many times as long this took as the other."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(mine / its for mine, its in pairs)


def seconds_of(function: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def turn(function: Callable[[], object]) -> float:
    """Median time of the calls of a turn; where there are several, the first is not counted."""
    time.sleep(PAUSE)
    calls = [seconds_of(function)]
    while sum(calls) < TURN:
        calls.append(seconds_of(function))
    return statistics.median(calls[1:] or calls)


def interleave(
    functions: Functions, seconds: float, longest: float = LONGEST_CALL
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time all functions in rounds for about `seconds`; all have been called before.

    Returns:
        The timings, and why others were left out: one call took longer than `longest` seconds.
    """
    kept: dict[str, list[float]] = {}
    skipped: dict[str, str] = {}
    for name, function in functions.items():
        first = seconds_of(function)
        if first <= longest:
            kept[name] = []
        else:
            skipped[name] = f"one call takes {first:.1f} s, at most {longest:.1f} s are given"
    start = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
        for name in rotated(list(kept), done):
            kept[name].append(turn(functions[name]))
    return {name: Timing(tuple(rounds)) for name, rounds in kept.items()}, skipped


def share_added(function: Callable[[], object], longer: Callable[[], object]) -> float:
    """What `longer` takes beyond `function`, as a share of it.

    Calls alternate, which is finer than `interleave`. Who comes first may be slower, so that either
    is first in every second pair, and the medians of both kinds of pairs count alike.
    """
    first: list[float] = []
    second: list[float] = []
    start = time.perf_counter()
    while len(second) < LEAST_PAIRS or time.perf_counter() - start < PAIR_SECONDS:
        first.append(seconds_of(longer) / seconds_of(function))
        alone = seconds_of(function)
        second.append(seconds_of(longer) / alone)
    return statistics.geometric_mean(map(statistics.median, (first, second))) - 1


def rotated(names: list[str], by: int) -> list[str]:
    """The names from another first one on: nobody's turn always follows the same other turn."""
    first = by % max(1, len(names))
    return names[first:] + names[:first]


def fastest(candidates: Functions) -> str:
    """Name of the candidate with the shortest turn of two, after a call to warm up."""
    for function in candidates.values():
        function()
    trials = {name: min(turn(f) for _ in range(2)) for name, f in candidates.items()}
    return min(trials, key=lambda name: trials[name])


def matmul(device: str, providers: list[Any], side: int) -> Callable[[], object]:
    """A product of two square float32 matrices in ONNX Runtime, all of them on the device."""
    a, b, c = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [side] * 2) for n in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "g", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=providers)
    matrix = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    binding = session.io_binding()
    for name in "ab":
        value = onnxruntime.OrtValue.ortvalue_from_numpy(matrix, device, 0)
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("c", device, 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def cpu_functions() -> dict[str, Callable[[], object]]:
    """What measures the CPU: a MatMul, and reading memory that no cache holds."""
    stream = torch.ones(STREAM_BYTES // 4)
    return {MATMUL: matmul("cpu", ["CPUExecutionProvider"], MATMUL_SIDE), STREAM: stream.sum}


@dataclass(frozen=True)
class Machine:
    """What the machine did while others were timed.

    Attributes:
        multiplications: a second, in float32 matrix products.
        bytes: a second, read from memory.
    """

    multiplications: float
    bytes: float

    @classmethod
    def of(cls, timings: Mapping[str, Timing], side: int = MATMUL_SIDE) -> "Machine":
        """From the timings of MATMUL, a product of matrices of that side, and STREAM."""
        return cls(side**3 / timings[MATMUL].median, STREAM_BYTES / timings[STREAM].median)
