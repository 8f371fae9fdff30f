"""Private torch APIs: counters of Dynamo, and memory events of the profiler.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["allocation_changes", "dynamo_graphs", "peak_allocation"]


def dynamo_graphs() -> int:
    """Return the number of graphs that `torch.compile` made in this process (torch 2.0 and later).

    Dynamo is not imported for this, because that takes a second. The result is 0 if Dynamo has no
    counters.
    """
    module = sys.modules.get("torch._dynamo.utils")
    counters = getattr(module, "counters", None)
    return int(counters["stats"]["unique_graphs"]) if counters else 0


def allocation_changes(profile: Any) -> list[int]:
    """Return the bytes of each allocation (positive) and release (negative) on the CPU, in order.

    Args:
        profile: a `torch.profiler.profile(profile_memory=True)` that has ended. Its events of single
            allocations have no public name (`kineto_results.events()`, torch 1.9 and later).
    """
    events = profile.profiler.kineto_results.events()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == "[memory]" and event.device_index() in (-1, 0)
    ]
    # The sort is stable, so that events with equal times keep their order.
    return [change for _, change in sorted(changes, key=lambda pair: pair[0])]


def peak_allocation(profile: Any) -> int:
    """Return the largest number of bytes allocated on the CPU at one time, minus those at the start.

    Args:
        profile: a `torch.profiler.profile(profile_memory=True)` that has ended.
    """
    allocated = peak = 0
    for change in allocation_changes(profile):
        allocated += change
        peak = max(peak, allocated)
    return peak
