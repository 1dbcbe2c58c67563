"""Where the time of a prediction goes, for people."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from lipdeploy.report.console import print_asked
from lipdeploy.timing import StageTimes

Result = TypeVar("Result")


class Profile:
    """Images a second from the first file to the last line of output, and what each stage takes.

    Args:
        times: the predictor's; only its stages "decode", "engine" and "certificate" are shown.
        decoders: threads that share the stage "decode".
    """

    def __init__(self, times: StageTimes, decoders: int) -> None:
        self._times, self._decoders = times, decoders
        self._images, self._waiting = 0, StageTimes()
        self._start = time.perf_counter()

    def watch(self, results: Iterable[Result]) -> Iterator[Result]:
        """The results, counted; what is done with them in between is the stage "output"."""
        ahead = iter(results)
        while True:
            with self._waiting.measure("results"):
                result = next(ahead, None)
            if result is None:
                return
            self._images += 1
            yield result

    def write(self) -> None:
        """Print it; stages run beside each other, and the one near 100 % is what limits."""
        seconds = time.perf_counter() - self._start
        output = seconds - self._waiting["results"]
        print_asked(
            f"profile: {self._images} images in {seconds:.2f} s, {self._images / seconds:.0f} "
            f"images a second on {os.cpu_count()} cores; busy seconds and share of the time:",
            _line("decode", self._times["decode"], seconds, self._decoders),
            _line("engine", self._times["engine"], seconds),
            _line("certificate", self._times["certificate"], seconds),
            _line("output", output, seconds),
        )


def _line(stage: str, busy: float, seconds: float, threads: int = 1) -> str:
    share = f"{busy / (seconds * threads):4.0%}"
    return f"  {stage:11s} {busy:8.2f} s {share}" + (f" of {threads} threads" * (threads > 1))
