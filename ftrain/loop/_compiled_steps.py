"""Compiled steps of a run: check that a compiler exists, and time the call that compiles.

`check_compiler` raises for a missing compiler before a run writes any file. The first call of a compiled
step compiles it, which may take half a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.compile import Compiled

__all__ = ["check_compiler", "is_compiled_next", "timed_first_call"]


def check_compiler(steps: Iterable[Any], state: Any) -> None:
    """Raise if a step is to be compiled and there is no compiler.

    Raises:
        CompilerMissingError: there is no C++ compiler; the message says how to get one.
    """
    devices = {leaf.device for leaf in tree.leaves(state) if isinstance(leaf, torch.Tensor)}
    if len(devices) == 1:  # with several devices, the compiler that each needs is not known yet
        for step in steps:
            if isinstance(step, Compiled):
                step.check_compiler(*devices)


def is_compiled_next(step: Callable[..., Any]) -> bool:
    """Return True if a compiled step was not called yet, so that its next call compiles it."""
    return isinstance(step, Compiled) and not step.n_compiles


def timed_first_call(
    step: Callable[..., Any], report: Callable[[float], None]
) -> Callable[..., Any]:
    """Return a step that passes the seconds of its first call to `report`."""
    began: float | None = time.perf_counter()

    def timed(*args: Any) -> Any:
        nonlocal began
        found = step(*args)
        if began is not None:
            seconds, began = time.perf_counter() - began, None
            report(seconds)
        return found

    return timed
