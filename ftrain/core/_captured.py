"""The tensors that a function reads without being given them.

They are found in its closure, its default arguments, the globals that its code names, the object that a
method is bound to, and in containers, objects, modules and functions reached from these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftrain.core._owned import Owned
from ftrain.core._reach import spell

__all__ = ["Captured"]

_LIMIT = 20_000  # objects: a walk of 0.1 s, made again only where something was bound anew


class Captured:
    """The tensors that a function captures, looked up anew where a name or container has changed.

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
        """Return them by name, as of now."""
        if self._owned is None:
            self._owned = Owned(
                [("", self._fn)], follow_globals=True, whole_modules=False, limit=_LIMIT
            )
        elif not self._owned.settle():
            return self._tensors
        found = self._owned.found.tensors
        self._tensors = {spell(path) or "tensor": tensor for path, tensor in found}
        return self._tensors
