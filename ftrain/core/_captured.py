"""Tensors that a function captures.

The search covers its closure, its default arguments, the globals that its code names, the object that a
method is bound to, and the containers, objects, modules and functions that are reached from these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftrain.core._reachable_objects import spell
from ftrain.core._restored_objects import Owned

__all__ = ["Captured"]

_LIMIT = 20_000  # largest number of objects; the search takes 0.1 s, and is repeated after changes


class Captured:
    """Cached search for the tensors that a function captures, repeated only if captured objects changed.

    Args:
        fn: a function, method, partial or callable object.

    >>> def scaled_by(weight):
    ...     return lambda x: x * weight
    >>> list(Captured(scaled_by(torch.ones(2))).tensors())
    ['weight']
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._owned: Owned | None = None
        self._tensors: dict[str, torch.Tensor] = {}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that the function captures now, by name."""
        if self._owned is None:
            self._owned = Owned(
                [("", self._fn)], follow_globals=True, whole_modules=False, limit=_LIMIT
            )
        elif not self._owned.settle():
            return self._tensors
        found = self._owned.found.tensors
        self._tensors = {spell(path) or "tensor": tensor for path, tensor in found}
        return self._tensors
