"""What torchrun tells each process that it starts; read without torch."""

import os

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def launched() -> tuple[int, int, int, int]:
    """Number of this process, how many there are, and both on its machine: 0, 1, 0, 1 if alone."""
    if any(name not in os.environ for name in NAMES) or os.environ["WORLD_SIZE"] == "1":
        return 0, 1, 0, 1
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in NAMES)
    return rank, size, local_rank, local_size
