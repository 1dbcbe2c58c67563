"""Pillow's warnings, silenced while any thread decodes."""

import threading
import warnings
from types import TracebackType

from PIL import Image


class QuietPillow:
    """A context in which Pillow prints no warning, and a decompression bomb is an error.

    `warnings.catch_warnings` changes the whole process, and must be left in the order in which it
    was entered; threads that overlap would leave it for ever. So they share one: the first to come
    enters it, the last to go leaves it. What other code warns of is shown as before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.|lipdeploy\.images")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(kind, error, trace)
