"""Checks of the bodies of loops and branches (`scan`, `cond`, ...), and copies of aliased tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._python_objects import cell_contents
from ftrain.core._torch_tensors import storage_id
from ftrain.core._words import kind
from ftrain.core._writes import FirstCalls, refuse_writes, unchanged, versions

__all__ = ["Pure", "check_carry", "check_tensors", "own_memory"]


def check_tensors(function: str, what: str, value: Any) -> list[torch.Tensor]:
    """Return the leaves of a tree; raise if one of them is not a tensor.

    Raises:
        TypeError: a leaf is not a tensor.
    """
    leaves = tree.leaves(value)
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(
                f"{function}: {what}{tree.paths(value)[i]}: expected a tensor, got "
                f"{type(leaf).__name__} {leaf!r}. Wrap numbers in torch.tensor(...)."
            )
    return leaves


def check_carry(function: str, old: Any, new: Any) -> None:
    """Raise unless a body returned a carry with the structure, shapes and dtypes of its input carry.

    Raises:
        TypeError: a leaf is not a tensor.
        ValueError: structure, a shape or a dtype differs; the message names the path.
    """
    difference = tree.first_difference(new, old)
    if difference is not None:
        raise ValueError(
            f"{function}: the carry that body returns differs in structure from the carry that it gets, "
            f"{difference}. Return the same containers with the same keys."
        )
    check_tensors(function, "carry", new)
    for path, before, after in zip(
        tree.paths(old), tree.leaves(old), tree.leaves(new), strict=True
    ):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise ValueError(
                f"{function}: expected body to return carry{path} as {kind(before)}, as in its input, "
                f"got {kind(after)}. "
                "Give the initial carry the shape and dtype that body returns."
            )


class Pure:
    """Wrapper of the body of a loop or branch; raises if the body writes to an input or captured tensor.

    Writes are detected by torch's version counters. Writes that torch does not count (`.data`, a NumPy
    view) are detected at the first call of a body, by comparing bytes.

    Args:
        function: the loop or branch, for messages.
        body: the function to call.
        names: the names of the body's arguments, for messages.

    Raises:
        ImpureFunctionError: a tensor was written to; the message names it.

    >>> Pure("scan", lambda c, x: c.add_(x), ("carry", "x"))(torch.zeros(2), torch.ones(2))
    Traceback (most recent call last):
        ...
    ftrain.core.errors.ImpureFunctionError: the tensor `carry` was changed in place. ...
    """

    def __init__(self, function: str, body: Callable[..., Any], names: Sequence[str]) -> None:
        self._body = body
        self._names = names
        codes, self._captured = _closure(body)
        self._kind = function, *codes
        self._remedy = (
            f"A function passed to {function} must be pure: write x = x + 1, not x += 1 or "
            "x.add_(1)"
        )

    def __call__(self, *args: Any) -> Any:
        tensors = [*tree.leaves(args), *self._captured.values()]
        if _calls.is_first(self._kind, tensors):
            places = dict(enumerate(tensors))
            called = lambda place: self._called(args)[place]  # noqa: E731
            with unchanged(places, "tensor", self._remedy, called, compare_bytes=True):
                output = self._body(*args)
            _calls.passed(self._kind)
            return output
        before = versions(tensors)
        output = self._body(*args)
        after = versions(tensors)
        if after != before:
            refuse_writes(self._called(args), tensors, before, after, "tensor", self._remedy)
        return output

    def _called(self, args: tuple[Any, ...]) -> list[str]:
        named = zip(self._names, args, strict=True)
        inputs = [f"{name}{path}" for name, value in named for path in tree.paths(value)]
        return [*inputs, *self._captured]


_calls = FirstCalls()
_MOST = 20  # largest number of functions in a closure that are searched


def _closure(body: Callable[..., Any]) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Return the code objects of a function and of functions in its closure, and their captured tensors.

    The tensors are returned by name. For a callable that is not a function, its class replaces the code
    object.
    """
    codes: list[Any] = []
    tensors: dict[int, tuple[str, torch.Tensor]] = {}
    found: list[tuple[Any, str]] = [(body, "")]
    for function, path in found:
        code = getattr(function, "__code__", type(function))
        codes.append(code)
        if isinstance(function, functools.partial):
            found.append((function.func, path))
        names, cells = getattr(code, "co_freevars", ()), getattr(function, "__closure__", None)
        for name, cell in zip(names, cells or (), strict=False):
            held = cell_contents(cell)
            if isinstance(held, torch.Tensor):
                tensors.setdefault(id(held), (f"{path}{name}", held))
            elif callable(held) and len(found) < _MOST and not any(held is f for f, _ in found):
                found.append((held, f"{path}{name}."))
    return codes, dict(tensors.values())


def own_memory(value: Any, given: Any) -> Any:
    """Return a tree in which tensors that share memory with `given` or each other are cloned.

    >>> x = torch.zeros(3)
    >>> own_memory((x[1:], "a"), x)[0].untyped_storage().data_ptr() == x.data_ptr()
    False
    """
    taken = {_storage(leaf) for leaf in tree.leaves(given) if isinstance(leaf, torch.Tensor)}

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        storage = _storage(leaf)
        if storage is None or storage in taken:
            return leaf.clone()
        taken.add(storage)
        return leaf

    return tree.map(own, value)


def _storage(tensor: torch.Tensor) -> int | None:
    """Return the identity of a tensor's storage; `None` if a torch.func transform hides it."""
    try:
        return storage_id(tensor)
    except (NotImplementedError, RuntimeError):
        return None
