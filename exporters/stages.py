"""The stages of an export: their names, told as they begin, and their times."""

import time
from collections.abc import Callable

Stage = Callable[[str], None]


def ignore_stage(name: str) -> None:
    """Tell nobody."""


class Stopwatch:
    """Names and times the stages, one after the other; the first is "load".

    Args:
        announce: told what is being done.

    Attributes:
        seconds: time of each stage that has ended.
    """

    def __init__(self, announce: Stage) -> None:
        self.seconds: dict[str, float] = {}
        self.announce = announce
        self._name, self._since = "load", time.perf_counter()
        announce(self._name)

    def start(self, name: str) -> None:
        """End the running stage, begin the next."""
        self.stop()
        self._name, self._since = name, time.perf_counter()
        self.announce(name)

    def layers(self, following: str) -> Callable[[int, int], None]:
        """Told how many layers are done of how many, it says so; after the last begins a stage."""

        def progress(done: int, total: int) -> None:
            if done == total:
                self.start(following)
            else:
                self.announce(f"{self._name}: layer {done + 1} of {total}")

        return progress

    def stop(self) -> None:
        """End the running stage."""
        self.seconds[self._name] = time.perf_counter() - self._since
