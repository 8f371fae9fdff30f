"""Functions without arguments that run one step of a variant at each call.

A pure step takes the state that its last call returned, as in training. Before each turn the state is
reset to the first one, so that times do not depend on the length of the measurement (denormal numbers
are slow).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from ftrain.core import tree

__all__ = ["MISSING", "Plain", "Pure", "Returns", "returned"]

MISSING: Any = object()

#: Position of the new state in the result of a pure function: the whole result, the first, or none.
Returns = Literal["state", "state first", "other"]


class Pure:
    """Runner of a pure step `(state, *rest) -> (state, ...)`; each call runs it on the latest state.

    Args:
        fn: the function, compiled or not.
        args: its arguments.
        returns: the part of its result that is the next state; "other": each call gets the same
            arguments.
        donate: True if the function reuses the memory of the state; the first state is then a copy.
    """

    def __init__(
        self, fn: Callable[..., Any], args: Sequence[Any], returns: Returns, donate: bool = False
    ) -> None:
        self._fn, (self._start, *self._rest) = fn, args
        self._returns, self._donate = returns, donate
        self._state: Any = None
        self.reset()

    def reset(self) -> None:
        """Set the state to the state before the first step."""
        self._state = None  # released before the copy is made
        self._state = tree.map(_copied, self._start) if self._donate else self._start

    def __call__(self) -> Any:
        result = self._fn(self._state, *self._rest)
        if self._returns == "state first":
            self._state = result[0]
        elif self._returns == "state":
            self._state = result
        return None

    def prepared(self) -> Callable[[], Any]:
        """Set the state to the state before the first step; return the function that runs one step."""
        self.reset()
        return self


class Plain:
    """Runner of a step that updates a model in place at each call; it cannot be reset."""

    def __init__(self, fn: Callable[..., Any], args: Sequence[Any]) -> None:
        self._fn, self._args = fn, args

    def __call__(self) -> Any:
        return self._fn(*self._args)

    def prepared(self) -> Callable[[], Any]:
        """Return a function without arguments that calls `fn` with its fixed arguments."""
        return self


def returned(result: Any, state: Any) -> Returns:
    """Return the place of the state in a step's result: first in a tuple, the whole result, or none.

    These are `"state first"`, `"state"` and `"other"`. The state is recognized by its structure, shapes
    and dtypes.
    """
    kind = _kind(state)
    if not kind[1]:
        return "other"
    if isinstance(result, tuple) and result and _kind(result[0]) == kind:
        return "state first"
    return "state" if _kind(result) == kind else "other"


def _kind(value: Any) -> tuple[Any, list[Any]]:
    leaves, structure = tree.flatten(value)
    return structure, [
        (x.shape, x.dtype) if isinstance(x, torch.Tensor) else type(x) for x in leaves
    ]


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf
