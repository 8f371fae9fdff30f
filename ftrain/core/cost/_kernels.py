"""Kernels that a call runs, each with its time: single operators, and kernels that inductor made.

On the CPU a dispatch mode times operators, and the kernels of inductor are found by name among the
globals of its generated modules (`_torch_kernels.py`). On CUDA torch's profiler reports both.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ftrain.core._torch_dispatch import DispatchMode, HigherOrderOperator
from ftrain.core._torch_kernels import cuda_kernels, kernels_replaced
from ftrain.core.cost._flops import NONE, Work, is_counted, operator_name, work_of

__all__ = ["Kernel", "kernels_of"]


class Kernel(NamedTuple):
    """Kernel that a call ran, with its time, FLOPs and bytes.

    Attributes:
        name: the operator, or the name that inductor gave to a fused kernel.
        seconds: its time.
        work: its FLOPs and bytes; on CUDA they are unknown and 0.
    """

    name: str
    seconds: float
    work: Work


def kernels_of(call: Callable[[], Any], device: torch.device) -> list[Kernel]:
    """Call a function once and return its kernels in order, with their times."""
    if device.type == "cuda":
        return [
            Kernel(name, seconds, NONE._replace(calls=1)) for name, seconds in cuda_kernels(call)
        ]
    found: list[Kernel] = []
    with kernels_replaced(lambda name, kernel: _timed(name, kernel, found)), _mode(found):
        call()
    return found


def _mode(found: list[Kernel]) -> _Mode:
    """Return the mode that times operators, with its own code excluded from compilation by Dynamo.

    Inside a function of `torch.compile`, Dynamo would compile the frames of the mode after a graph
    break.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return _Mode(found)
    hidden = {"__torch_dispatch__": dynamo.disable(_Mode.__torch_dispatch__)}
    made: _Mode = type("_HiddenMode", (_Mode,), hidden)(found)
    return made


def _timed(name: str, kernel: Callable[..., Any], found: list[Kernel]) -> Callable[..., Any]:
    """Wrap a kernel of inductor to record the time of each call, and the bytes of its tensors."""

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = kernel(*args, **kwargs)
        seconds = time.perf_counter() - start
        size = sum(t.numel() * t.element_size() for t in args if isinstance(t, torch.Tensor))
        found.append(Kernel(name, seconds, Work(1, {}, size)))
        return result

    return run


class _Mode(DispatchMode):
    """Dispatch mode that times each operator that computes values."""

    def __init__(self, found: list[Kernel]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return func(*map(self._watched, args), **kwargs)
        start = time.perf_counter()
        result = func(*args, **kwargs)
        seconds = time.perf_counter() - start
        if is_counted(func):
            work = work_of(func, args, kwargs, result)
            self._found.append(Kernel(operator_name(func), seconds, work))
        return result

    def _watched(self, argument: Any) -> Any:
        """Wrap the body of a loop or branch so that this mode is active in it; return other values."""
        if not isinstance(argument, torch.nn.Module):
            return argument

        def body(*args: Any) -> Any:
            with self:
                return argument(*args)

        return body
