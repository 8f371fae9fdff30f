"""Torch functions that are replaced while a function is traced.

Tracing by execution would record them wrongly or not at all.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ftrain.core import _torch
from ftrain.core._lost_tangents import refuse_second_tangents, with_tangents
from ftrain.core._torch_dispatch import HigherOrderOperator, is_all_true, is_batched_tensor
from ftrain.core.compile._errors import current_line, describe
from ftrain.core.compile._rnn import KINDS, recurrent_layer
from ftrain.core.compile._untraceable import Calls
from ftrain.core.errors import ImpureFunctionError
from ftrain.core.random._keyed_reach import RUN_THE_GRAPH, without_dispatch

__all__ = ["Rewrites"]


class Rewrites(TorchFunctionMode):
    """Mode that replaces torch functions by the traceable ones of this file during a trace.

    Args:
        calls: the record of the torch function that raised an error.
    """

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        # `torch.cond` runs its branches after the trace of Dynamo.
        if torch.compiler.is_dynamo_compiling():
            return func(*args, **(kwargs or {}))
        try:
            return self._run(func, args, kwargs or {})
        except Exception as error:
            self._calls.raised(func, error)
            raise

    def _run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        rewrite = _REWRITES.get(func)
        if rewrite is not None:
            return rewrite(func, *args, **kwargs)
        # These functions call user code, for which the mode must stay active.
        if isinstance(func, HigherOrderOperator):
            refuse_second_tangents(func, args)
            with self:
                return without_dispatch(HigherOrderOperator.__call__)(func, *args, **kwargs)
        if func in RUN_THE_GRAPH:
            with self:
                return without_dispatch(func)(*args, **kwargs)
        return with_tangents(func, args, kwargs)


def _set_data(func: Callable[..., Any], tensor: torch.Tensor, value: torch.Tensor) -> Any:
    """Trace `tensor.data = value`, after which `tensor` shares the memory of `value`.

    No operator runs for it, so a trace would continue with the old value.
    """
    if _torch.is_wrapped(tensor):
        return func(tensor, value)  # torch raises for this
    if not _torch.is_recorded(tensor):
        raise ImpureFunctionError(
            f"the traced function sets `.data` of a tensor that it captures or was given "
            f"({describe(tensor)}), here:\n\n{current_line()}\n\n"
            "A compiled function is pure: it leaves its inputs unchanged. Compute a new tensor and "
            "return it as an output."
        )
    alias = value.detach()
    func(tensor, alias)
    _torch.record_as(tensor, alias)
    return None


def _class_indices(
    func: Callable[..., Any], input: torch.Tensor, target: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Compute a loss of uint8 labels in int64: the fake kernels do not support uint8 (torch 2.13)."""
    if target.dtype == torch.uint8:
        target = target.to(torch.int64)
    return func(input, target, *args, **kwargs)


def _copied(func: Callable[..., Any], tensor: torch.Tensor, memo: dict[int, Any]) -> Any:
    """Record a deep copy as a clone, since torch copies the storage, which a trace cannot record."""
    is_plain = type(tensor) in (torch.Tensor, _torch.FakeTensor)
    if id(tensor) in memo or not (tensor.is_leaf and is_plain):
        return func(tensor, memo)
    new = memo[id(tensor)] = tensor.detach().clone()
    if tensor.requires_grad:
        new.requires_grad_()
    for name in vars(tensor).keys() - vars(new).keys():
        setattr(new, name, copy.deepcopy(getattr(tensor, name), memo))
    return new


class _Checked:
    """Placeholder for a condition: true during the trace, checked when the graph runs."""

    def item(self) -> bool:
        return True


def _is_all_true(func: Callable[..., Any], condition: torch.Tensor) -> Any:
    """Record a check of `torch._check_tensor_all` as an operator, which raises when the graph runs.

    That function reads the value of the condition, which a trace does not have.
    """
    if is_batched_tensor(condition):
        return func(condition)  # _assert_async has no batching rule (2.13)
    # Inductor copies the message into C++ without escapes (2.13), so it must be one line without quotes.
    line = re.sub(r"[\\\"'^]", "", " ".join(current_line().split()))
    message = (
        f"a check in the compiled function failed, expected a condition to be true, here: {line}"
    )
    torch.ops.aten._assert_async.msg(condition.detach().all(), message)
    return _Checked()


_REWRITES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(KINDS, recurrent_layer),
    **dict.fromkeys((functional.nll_loss, functional.cross_entropy), _class_indices),
    is_all_true: _is_all_true,  # its only use in torch is in these checks (2.11 to 2.13)
    torch.Tensor.__deepcopy__: _copied,
    torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]  # a getset descriptor
}
