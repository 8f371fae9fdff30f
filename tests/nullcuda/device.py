"""Counters of the null device."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Iterator


def is_null() -> bool:
    """Return True if this process has the stubs of the null device loaded."""
    return hasattr(ctypes.CDLL(None), "nc_launch")


@dataclasses.dataclass
class Counts:
    """Launches, waits and copies of the host inside a block.

    Attributes:
        launches: kernels launched one by one.
        graphs: CUDA graphs launched.
        syncs: waits for the device.
        to_device: copies from host memory; of these `pageable` came from memory that is not pinned.
        to_host: copies to host memory, which wait for the device.
        bad_captures: calls that a stream under capture does not allow.
    """

    launches: int = 0
    graphs: int = 0
    syncs: int = 0
    to_device: int = 0
    pageable: int = 0
    to_host: int = 0
    bad_captures: int = 0

    @property
    def waits(self) -> int:
        """The number of times the host waited for the device, or copied from or to it."""
        return self.syncs + self.to_device + self.to_host


_COUNTERS = {
    "launches": "nc_launch",
    "graphs": "nc_graphlaunch",
    "syncs": "nc_sync",
    "to_device": "nc_h2d",
    "pageable": "nc_h2d_pageable",
    "to_host": "nc_d2h",
    "bad_captures": "nc_badcapture",
}


def _read() -> dict[str, int]:
    library = ctypes.CDLL(None)
    return {name: ctypes.c_long.in_dll(library, c).value for name, c in _COUNTERS.items()}


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Count what the host does inside the block; the counts are complete after it.

    Example:
        with counted() as counts:
            step(state, batch)
        assert counts.waits == 0
    """
    counts, before = Counts(), _read()
    yield counts
    for name, value in _read().items():
        setattr(counts, name, value - before[name])
