"""Inductor's sums over repeated indices, computed in order (private; torch 2.13).

The gradient of an embedding or of `w[indices]` adds several values to one element. Inductor's loops for
the CPU do so with atomic additions by all threads, in an order that varies from call to call, and so do
the bits of a float32 sum. While `in_order` is active, such a loop runs on one thread without atomic
additions. A sum then also has the same bits with any number of threads. An atomic addition of floats
takes several times as long as one without, so that the loop on one thread is about as fast as on a few.

Like `_torch.py`, this file names the versions that have what it uses: `CppKernel.store`,
`decide_parallel_depth` and `OuterLoopFusedKernel`. Without one of them, the loops stay as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["in_order"]


class _Here(threading.local):
    active = False


_here = _Here()


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Make inductor generate ordered sums for the CPU in this thread during a `with` block."""
    _watch_kernels()
    before, _here.active = _here.active, True
    try:
        yield
    finally:
        _here.active = before


@functools.cache
def _watch_kernels() -> None:
    from torch._inductor.codegen import cpp  # noqa: PLC0415  costs a second

    kinds = [getattr(cpp, name, None) for name in ("CppKernel", "CppVecKernel", "CppTile2DKernel")]
    fused = getattr(cpp, "OuterLoopFusedKernel", None)
    if None in kinds or not hasattr(cpp.CppKernel, "decide_parallel_depth"):
        return
    for kind in kinds:
        _store_in_order(kind)
    _run_on_one_thread(cpp.CppKernel, lambda kernel: [kernel, *getattr(kernel, "kernels", ())])
    if fused is not None:
        _run_on_one_thread(fused, _kernels_of)


def _kernels_of(fused: Any) -> list[Any]:
    kernels = [nest.get_kernel() for nest in fused.inner]
    return [each for kernel in kernels for each in (kernel, *getattr(kernel, "kernels", ()))]


def _store_in_order(kind: Any) -> None:
    """Make the method `store` of a class of kernels add without atomic additions, and remember it."""
    usual = kind.store

    def store(self: Any, name: Any, index: Any, value: Any, mode: Any = None) -> Any:
        if mode is None or not _here.active:
            return usual(self, name, index, value, mode)
        self.adds_in_order = True
        before, self.num_threads = self.num_threads, 1
        try:
            return usual(self, name, index, value, mode)
        finally:
            self.num_threads = before

    kind.store = store


def _run_on_one_thread(kind: Any, parts: Any) -> None:
    """Make `decide_parallel_depth` of a class of kernels return no parallel loop for ordered sums."""
    usual = kind.decide_parallel_depth

    def decide_parallel_depth(self: Any, *args: Any, **kwargs: Any) -> Any:
        decided = usual(self, *args, **kwargs)
        if any(getattr(part, "adds_in_order", False) for part in parts(self)):
            return dataclasses.replace(decided, parallel_depth=0)
        return decided

    kind.decide_parallel_depth = decide_parallel_depth
