"""How much memory is free."""

import os
import sys
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def free_memory() -> int | None:
    """Bytes that can be taken without swapping, in a container no more than it is allowed.

    Where the system does not count them (macOS) all that it has; None where it does not say even
    that (Windows).
    """
    if sys.platform == "win32":
        return None
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, KeyError, ValueError):
        free = 1024 * _table(MEMINFO)["MemAvailable:"]
    with suppress(OSError, KeyError, ValueError):  # no container, or "max"
        allowed = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        # Files that were read count as used, but are dropped where the room is needed.
        cached = _table(CGROUP / "memory.stat")["inactive_file"]
        free = min(free, max(0, allowed - used + cached))
    return free


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number, as the kernel writes them."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows}
