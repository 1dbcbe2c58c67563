"""A function applied to a stream by threads: results in order, and never far ahead of the consumer.

    with Pipeline() as pipeline:
        decoded = pipeline.map(decode, files, ahead=64, threads=2)
        for answer in pipeline.map(run, decoded, ahead=1):
            ...

Every stage works while the next one does, as far as its function releases the GIL, which Pillow,
numpy and ONNX Runtime do.
"""

import atexit
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

PATIENCE = 0.2
"""Seconds that closing waits for a thread that is inside of somebody's iterator."""


class _Stage(Generic[In, Out]):
    """The state of one `Pipeline.map`, guarded by the pipeline's condition.

    Attributes:
        outcomes: of the items that were read and that the consumer has not asked for, in order.
        reader: the thread that is reading the next item; an iterator bears only one.
        has_ended: whether nothing is left to read.
    """

    def __init__(self, function: Callable[[In], Out], items: Iterator[In], ahead: int) -> None:
        self.function, self.items, self.ahead = function, items, ahead
        self.outcomes: deque[Future[Out]] = deque()
        self.reader: threading.Thread | None = None
        self.has_ended = False

    @property
    def has_room(self) -> bool:
        """Whether the next item may be read."""
        return self.reader is None and len(self.outcomes) < self.ahead


class Pipeline:
    """Threads that work ahead of a consumer; leaving the context ends them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stages: list[_Stage[Any, Any]] = []
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def __enter__(self) -> Self:
        # Whoever keeps a half-read stream until Python ends must not wait for its threads for ever.
        atexit.register(self.close)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        atexit.unregister(self.close)
        self.close()

    def map(
        self, function: Callable[[In], Out], items: Iterable[In], *, ahead: int, threads: int = 1
    ) -> Iterator[Out]:
        """The results of `function`, in the order of `items`.

        An exception, of `items` or of `function`, is raised in its place in that order.

        Args:
            function: called by any of the threads.
            items: read by these threads, one at a time, so that an iterator that blocks holds back
                no result of an item that it has given.
            ahead: items that are read at most before the consumer asks for their results.
            threads: how many apply `function`.
        """
        stage = _Stage(function, iter(items), ahead)
        self._stages.append(stage)
        for _ in range(threads):
            thread = threading.Thread(target=self._work, args=(stage,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self._results(stage)

    def _work(self, stage: _Stage[In, Out]) -> None:
        while self._may_read(stage):
            outcome: Future[Out] = Future()
            try:
                item = next(stage.items)
            except StopIteration:
                self._give(stage, has_ended=True)
                return
            # Whatever it is, it is the consumer's.
            except BaseException as error:
                outcome.set_exception(error)
                self._give(stage, outcome, has_ended=True)
                return
            self._give(stage, outcome)
            if self._is_closed:
                outcome.cancel()
                return
            try:
                outcome.set_result(stage.function(item))
            except BaseException as error:
                outcome.set_exception(error)

    def _may_read(self, stage: _Stage[In, Out]) -> bool:
        """Wait for room, and become the reader; False where nothing is to be done any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over(stage) or stage.has_room)
            if self._is_over(stage):
                return False
            stage.reader = threading.current_thread()
            return True

    def _is_over(self, stage: _Stage[In, Out]) -> bool:
        return self._is_closed or stage.has_ended

    def _give(
        self, stage: _Stage[In, Out], *outcomes: Future[Out], has_ended: bool = False
    ) -> None:
        """Stop being the reader, and give the consumer what was read, or the end."""
        with self._changed:
            stage.reader, stage.has_ended = None, has_ended
            stage.outcomes.extend(outcomes)
            self._changed.notify_all()

    def _results(self, stage: _Stage[In, Out]) -> Iterator[Out]:
        while (outcome := self._next_outcome(stage)) is not None:
            yield outcome.result()

    def _next_outcome(self, stage: _Stage[In, Out]) -> Future[Out] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_over(stage) or stage.outcomes)
            if self._is_closed or not stage.outcomes:
                return None
            self._changed.notify_all()
            return stage.outcomes.popleft()

    def close(self) -> None:
        """End the threads: each finishes the item that it has.

        One that waits inside of somebody's iterator cannot be ended from here: it ends when that
        gives an item, or with Python.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if threading.current_thread() in self._threads:
            return  # the garbage collector ran here, maybe where the others cannot end before
        for thread in self._threads:
            is_reading = any(stage.reader is thread for stage in self._stages)
            thread.join(PATIENCE if is_reading else None)
