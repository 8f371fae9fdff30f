"""Private torch APIs: the modules that inductor generates, and kernel events of the profiler.

Like `_torch.py`, this file names the versions that have each API, and the behaviour without it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

__all__ = ["cuda_kernels", "kernels_replaced"]

_KERNELS = ("cpp_fused", "cpp_CppMicro", "triton_")


@contextlib.contextmanager
def kernels_replaced(wrap: Callable[[str, Any], Callable[..., Any]]) -> Iterator[None]:
    """Replace inductor's kernels for the CPU by `wrap(name, kernel)` during a `with` block.

    (`PyCodeCache.modules`, torch 2.3 and later; `PyCodeCache.cache` before. Without them, or before
    inductor is imported, nothing is replaced.)
    """
    replaced: list[tuple[ModuleType, str, Any]] = []
    try:
        for module in _generated():
            for name, value in list(vars(module).items()):
                if name.startswith(_KERNELS) and callable(value):
                    replaced.append((module, name, value))
                    setattr(module, name, wrap(name, value))
        yield
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


def _generated() -> list[ModuleType]:
    cache = getattr(sys.modules.get("torch._inductor.codecache"), "PyCodeCache", None)
    found = getattr(cache, "modules", None)
    if found is None:
        found = getattr(cache, "cache", {}).values()
    return [module for module in found if isinstance(module, ModuleType)]


def cuda_kernels(call: Callable[[], Any]) -> list[tuple[str, float]]:
    """Call a function once; return the name and the seconds of each kernel and copy on the device.

    (`kineto_results.events()`, torch 1.9 and later.)
    """
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    results: Any = profile.profiler
    events = [e for e in results.kineto_results.events() if "CUDA" in str(e.device_type())]
    kernels = [e for e in events if not e.is_user_annotation()]
    return [(e.name(), e.duration_ns() / 1e9) for e in sorted(kernels, key=lambda e: e.start_ns())]
