"""What to do where memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager

from lipdeploy.errors import TrainingError
from lipdeploy.training.sampling import Share

SIGNS = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
"""What torch says on a CPU, on a GPU, and in a GPU's libraries; only on a GPU it has a type."""


def is_memory_error(error: BaseException) -> bool:
    """Whether memory ran out."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS)


@contextmanager
def explaining_memory_errors(what: str, advice: str) -> Iterator[None]:
    """Turn torch's and Python's errors for lack of memory into one line.

    Args:
        what: what did not fit.
        advice: what to type next.

    Raises:
        TrainingError: in their place.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        raise TrainingError(f"not enough memory for {what}; {advice}") from error


def advice_for(share: Share) -> str:
    """How a run that did not fit can go on."""
    size, batch = share.processes.size, share.batch
    finer = [k for k in range(share.parts + 1, batch + 1) if batch % (k * size) == 0]
    if not finer:
        return "begin anew with a smaller --width or --image-size"
    return (
        f"go on with --resume --accumulate {finer[0]}, which takes the same steps in smaller parts,"
        f" or begin anew with a smaller --batch than {batch}"
    )
