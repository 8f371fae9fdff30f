"""Private torch APIs of `torch.distributions`: internal samplers, and validation of arguments.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributions import Distribution, dirichlet, von_mises

__all__ = [
    "dirichlet_sampler",
    "validation_default",
    "von_mises_sampler",
    "without_validation",
]


class _Off(threading.local):
    depth = 0


_off = _Off()
_lock = threading.Lock()
_installed: list[_Default] = []  # one for each active context in any thread


class _Default:
    """Per-thread replacement of `Distribution._validate_args`: False inside `without_validation`."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __get__(self, instance: Any, owner: Any = None) -> bool:
        return self.value and not _off.depth


def validation_default() -> bool:
    """Return True if distributions validate their arguments by default (torch 1.8 and later)."""
    return Distribution._validate_args


@contextlib.contextmanager
def without_validation() -> Iterator[None]:
    """Turn off the default validation of distributions' arguments, which reads their values.

    The default of the process is restored afterwards, because the first use of Dynamo, in a trace or by
    inductor, would switch it off permanently. (`Distribution._validate_args`: torch 1.8 and later.)
    """
    with _lock:
        default = _installed[-1] if _installed else _Default(Distribution._validate_args)
        if not _installed:
            Distribution._validate_args = default  # type: ignore[assignment]  # a descriptor
        _installed.append(default)
    _off.depth += 1
    try:
        yield
    finally:
        _off.depth -= 1
        with _lock:
            _installed.pop()
            Distribution._validate_args = (
                default if _installed else default.value  # type: ignore[assignment]
            )


def _overridable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that a `TorchFunctionMode` sees its calls."""

    @functools.wraps(function)
    def called(*args: Any) -> Any:
        if torch.overrides.has_torch_function(args):
            return torch.overrides.handle_torch_function(called, args, *args)
        return function(*args)

    return called


@functools.cache
def dirichlet_sampler() -> Callable[..., Any]:
    """Make torch's Dirichlet sampler a function whose calls a `TorchFunctionMode` sees; return it.

    `Dirichlet.rsample` calls the returned function from then on. Its autograd function does not work
    under transforms of torch.func, so a mode must replace the call and not enter it.
    (`torch.distributions.dirichlet._Dirichlet`: torch 0.4 and later.)
    """
    sampler = _overridable(dirichlet._Dirichlet.apply)
    dirichlet._Dirichlet.apply = staticmethod(sampler)  # type: ignore[method-assign]
    return sampler


@functools.cache
def von_mises_sampler() -> Callable[..., Any]:
    """Make torch's von Mises sampler a function whose calls a `TorchFunctionMode` sees; return it.

    `VonMises.sample` calls the returned function from then on, with the arguments
    `(loc, concentration, proposal_r, x)`. The function draws in a loop whose end depends on values.
    (`von_mises._rejection_sample`: torch 1.5 and later.)
    """
    sampler = _overridable(von_mises._rejection_sample)
    von_mises._rejection_sample = sampler
    return sampler
