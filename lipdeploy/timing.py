"""Seconds spent in each stage of a work that threads share."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class StageTimes:
    """Adds up wall time by the name of a stage; of several threads in one, the sum."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def __getitem__(self, stage: str) -> float:
        """Seconds spent in a stage so far."""
        return self._seconds[stage]

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time spent inside of the context."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            with self._lock:
                self._seconds[stage] += seconds
