"""Removal of traced tensors from Python objects after a trace.

While a function is traced, its tensors have no values. If the function fills a cache during the trace (a
dict in the model's file, a closure of the loss, `functools.lru_cache`), a later call would get such a
tensor from it. Therefore all objects that a traced function reaches are recorded before the trace, and
those that contain tensors of the trace afterwards are restored. Other changes are kept, so that a loss
can count its traces.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from typing import Any

import torch

from ftrain.core import _torch
from ftrain.core._reachable_objects import reach
from ftrain.core._restored_objects import Owned

__all__ = ["guard", "leftovers_removed"]

_LIMIT = 20_000  # maximum number of objects


class _Guarded(threading.local):
    owned: dict[int, Owned] | None = None  # by the id of the guarded object; None outside of traces


_guarded = _Guarded()


@contextlib.contextmanager
def leftovers_removed() -> Iterator[None]:
    """Restore, at the end of the context, objects recorded by `guard` that hold traced tensors."""
    if _guarded.owned is not None:  # the outer trace restores the objects
        yield
        return
    _guarded.owned = {}
    try:
        yield
    finally:
        owned, _guarded.owned = _guarded.owned, None
        for each in owned.values():
            _restore(each)


def guard(root: Any) -> None:
    """Record all objects that a function or module reaches, to restore them after the trace."""
    owned = _guarded.owned
    if owned is not None and id(root) not in owned:
        owned[id(root)] = Owned([("", root)], follow_globals=True, limit=_LIMIT)


def _restore(owned: Owned) -> None:
    for change in owned.restore_contents():
        if not any(_holds_traced(value) for value in change.values):
            change.put(change.node, change.keys, change.values)
    for cache in owned.found.caches:
        if cache.cache_info().currsize and _refers_to_traced(cache):
            cache.cache_clear()


def _holds_traced(value: Any) -> bool:
    return any(
        isinstance(tensor, _torch.FakeTensor) or _torch.is_wrapped(tensor)
        for _, tensor in reach([("", value)], limit=_LIMIT).tensors
    )


def _refers_to_traced(cache: Any) -> bool:
    """Return True if the cache of a `functools.lru_cache` holds tensors of the trace."""
    seen: set[int] = set()
    level = gc.get_referents(cache)
    for _ in range(3):  # the cache's dict, its links, and the objects in these
        for thing in level:
            if isinstance(thing, (tuple, list, dict, torch.Tensor)) and _holds_traced(thing):
                return True
        seen.update(map(id, level))
        level = [
            x for thing in level if type(thing).__module__ in ("builtins", "functools")
            for x in gc.get_referents(thing) if id(x) not in seen
        ]  # fmt: skip
    return False
