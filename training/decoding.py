"""Image files to arrays, in this process or in others; without torch, which would slow their start.

Other processes stay at most a few lists of files ahead of whoever takes the arrays, ignore Ctrl-C,
and end with the process that started them, however that ends.
"""

import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.errors import DatasetError, ImageError, TrainingError
from lipdeploy.images import decode
from lipdeploy.resize import linear_resize

AHEAD = 4
"""Lists of files, for each worker, that are decoded or waited for ahead of the consumer."""


def decode_file(path: Path, size: int) -> NDArray[Any]:
    """One image, resized and cropped to (3, size, size), 0 ... 255.

    Returns:
        uint8 where the file has that size, else float16.

    Raises:
        DatasetError: if it cannot be read.
    """
    try:
        pixels = decode(path).pixels
        resized = linear_resize(pixels.shape[0], pixels.shape[1], size)(pixels)
    except ImageError as error:
        raise DatasetError(f"{path!s}: {error}; remove or replace the image") from error
    whole = pixels.shape[:2] == (size, size)
    return resized.astype(np.uint8 if whole else np.float16)


def decode_list(files: Sequence[Path], size: int) -> NDArray[Any]:
    """Several images, (len(files), 3, size, size); float16 where one of them is."""
    images = [decode_file(path, size) for path in files]
    # In the one layout that a cached array has, too: a model file keeps that of its examples.
    return np.ascontiguousarray(np.stack(images))


def decode_lists(
    lists: Iterable[Sequence[Path]], size: int, workers: int
) -> Generator[NDArray[Any], None, None]:
    """Decode lists of files, in their order.

    Args:
        lists: read not far ahead of what is taken.
        size: side of the images.
        workers: decoding processes; with 1 this process decodes, when it is asked.

    Raises:
        DatasetError: if an image cannot be read.
        TrainingError: if a decoding process was killed.
    """
    if workers == 1:
        yield from (decode_list(files, size) for files in lists)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_serve_the_parent_only)
    waiting: deque[Future[NDArray[Any]]] = deque()
    try:
        for files in lists:
            waiting.append(pool.submit(decode_list, files, size))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise TrainingError(
            f"one of {workers} decoding processes was killed, perhaps for memory; try fewer "
            "--workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _serve_the_parent_only() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it: nobody else would end an idle worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
