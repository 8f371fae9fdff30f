"""Estimate of the memory that this process can still allocate."""

from __future__ import annotations

import os

__all__ = ["LIMITS", "available_memory", "total_memory"]

#: Files with the limit in bytes of a container: control groups of version 2, and of version 1.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNKNOWN = 1 << 62


def total_memory() -> int:
    """Return the memory of this machine, in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # some systems do not report it
        return _UNKNOWN


def available_memory() -> int:
    """Return how many bytes can be allocated before the system kills processes for lack of memory.

    If that is unknown, this is the memory of the machine. Freed caches and swap space count. A
    container's limit counts whole, because most of what it counts as used are caches.
    """
    found = {}
    try:
        with open("/proc/meminfo", "rb") as file:
            for line in file:
                name, _, size = line.partition(b":")
                found[name] = int(size.split()[0]) << 10
        available = found[b"MemAvailable"] + found.get(b"SwapFree", 0)
    except (OSError, ValueError, KeyError, IndexError):  # not Linux
        available = total_memory()
    return min(available, *map(_limit, LIMITS))


def _limit(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return int(file.read())
    except (OSError, ValueError):  # there is none, "max"
        return _UNKNOWN
