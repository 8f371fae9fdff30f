"""Draws in a `torch.autograd.Function` that is called under transforms of torch.func.

Torch runs the static methods of such a function inside of other transforms than those around the call:
`forward` once, below all derivatives, and with `generate_vmap_rule` inside of new vmaps in place of
those around the call. Its draws use the key of the context, wrapped for these vmaps, and equal draws
outside of the function. Torch calls `setup_context` once for each transform, `jvp` once for each forward
derivative and a `vmap` staticmethod once for all rows, so draws in these raise. `backward` runs in
backward passes, in which `KeyStream` refuses all draws.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ftrain.core._torch_dispatch import is_generated_function
from ftrain.core._torch_levels import vmap_levels
from ftrain.core.random._key_stream import KeyStream
from ftrain.core.random._refusal import in_function

__all__ = ["drawing"]

Function = type[torch.autograd.Function]


class _Drawing:
    """Mixin of the classes that `drawing` returns."""

    def __init_subclass__(cls) -> None:
        """Skip the user class's `__init_subclass__`, which may register classes or need arguments."""


def drawing(function: Function, stream: KeyStream) -> Function:
    """Return a subclass of an autograd function whose `forward` draws from a stream.

    Call this under the transforms around the call of the function. Torch calls the function again below
    each of them, with the subclass or with functions that it generates from the subclass: these are
    returned unchanged.
    """
    if issubclass(function, _Drawing) or is_generated_function(function):
        return function
    vmaps = vmap_levels()

    def moved() -> Any:
        return stream.moved(vmaps, lambda: in_function(function, "forward"))

    methods = {"forward": _inside(moved, function.forward)}
    for name in ("jvp", "setup_context", "vmap"):
        method = getattr(function, name)
        if method is not getattr(torch.autograd.Function, name):
            methods[name] = _inside(_refusing(stream, function, name), method)
    names = {"__module__": function.__module__, "__qualname__": function.__qualname__}
    static = {name: staticmethod(method) for name, method in methods.items()}
    return type(function.__name__, (_Drawing, function), names | static)


def _refusing(stream: KeyStream, function: Function, name: str) -> Callable[[], Any]:
    return lambda: stream.refusing(lambda: in_function(function, name))


def _inside(context: Callable[[], Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method to run inside a context."""

    @functools.wraps(method)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with context():
            return method(*args, **kwargs)

    return inside
