"""Independent runs beside each other, one a core."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def each_on_a_core(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of a picklable function as they come, each computed by one thread.

    Small networks train faster so than one after another with every thread; the time that such a
    run takes is that of a thread beside others.
    """
    workers = ProcessPoolExecutor(
        len(os.sched_getaffinity(0)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    with workers:
        for done in as_completed([workers.submit(function, item) for item in items]):
            yield done.result()
