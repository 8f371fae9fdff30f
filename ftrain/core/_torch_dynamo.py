"""Private torch APIs: errors and counters of Dynamo, and memory events of the profiler.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

import re
import sys
from typing import Any

__all__ = ["allocation_changes", "dynamo_graphs", "dynamo_refusal", "peak_allocation"]

# Where the text of an error of Dynamo names the operator, and the reason.
_OPERATOR = re.compile(r"Higher Order Operator: (\S+)")
_REASONS = (
    re.compile(r": got (\w+\(.+\))"),
    re.compile(r"Explanation: (.+?)(?: Found in <.*)?$", re.MULTILINE),
    re.compile(r"Got graph break/error:\s*(.+)"),
    re.compile(r"(.+ but found:\s*.+)"),
)


def dynamo_refusal(error: BaseException) -> tuple[str, str] | None:
    """Return the operator that Dynamo refused, and the reason; `None` if the error is not Dynamo's.

    In a trace only torch's higher-order operators run Dynamo, on the functions that they are given.
    (`torch._dynamo.exc.TorchDynamoException`, torch 2.0 and later; without it, `None`.)
    """
    module = sys.modules.get("torch._dynamo.exc")
    if module is None or not isinstance(error, module.TorchDynamoException):
        return None
    text = str(error)
    operator = _OPERATOR.search(text)
    reasons = [found[1] for found in (each.search(text) for each in _REASONS) if found]
    reason = " ".join((reasons or text.strip().splitlines() or [type(error).__name__])[0].split())
    name = operator[1] if operator else "a higher-order operator of torch"
    return name.replace("torch.ops.higher_order.", "torch's "), reason.rstrip(".")


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
