"""Search for the line of user code that wrote into a tensor that a call must not change.

The call is run once more, on tensors without values, until an operator writes into that tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ftrain.core import _torch
from ftrain.core._graph_leaves import innermost
from ftrain.core._torch_dispatch import DispatchMode, schema_of
from ftrain.core._torch_tensors import storage_id
from ftrain.core._user_line import current_line
from ftrain.core.errors import ImpureFunctionError

__all__ = ["WriteWatch", "with_line", "written"]

aten = torch.ops.aten
_BATCH_NORMS = (
    aten.native_batch_norm.default,
    aten.cudnn_batch_norm.default,
    aten.miopen_batch_norm.default,
)


def written(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the arguments that an operator writes to."""
    if operator in _BATCH_NORMS and args[5]:
        return [x for x in args[3:5] if x is not None]
    schema = schema_of(operator)
    if schema is None or not schema.is_mutable:
        return []
    found: list[Any] = []
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += value if isinstance(value, (list, tuple)) else [value]
    return found


class WriteWatch(DispatchMode):
    """Mode that records the line of user code that first writes to one of the given tensors.

    Args:
        inputs: the tensors. In a fake tensor mode, a tensor from outside is recognized itself, and a
            view of it by its fake tensor.
        stops: True to raise `_Found` instead of making the write.
    """

    line = ""

    def __init__(self, inputs: Sequence[torch.Tensor], *, stops: bool = False) -> None:
        super().__init__()
        self._storages, self._stops = {storage_id(t) for t in inputs}, stops

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        for target in written(func, args, kwargs or {}):
            if self.line or not isinstance(target, torch.Tensor):
                continue
            if storage_id(target) in self._storages:
                self.line = current_line()
                if self._stops:
                    raise _Found
        return func(*args, **(kwargs or {}))


class _Found(Exception):
    """Exception that ends the search once the write is found."""


def with_line(error: Exception, run: Callable[[], Any]) -> Exception:
    """Return `error` with the line of user code that made the write; unchanged if no line is found.

    Args:
        error: the exception that `run` raised.
        run: a pure function, which is run again on fake tensors.
    """
    if not isinstance(error, ImpureFunctionError) or error.tensor is None:
        return error
    line = _line(error.tensor, run)
    return error if not line else error.at(line)


def _line(tensor: torch.Tensor, run: Callable[[], Any]) -> str:
    watch = None
    with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
        inputs = [innermost(tensor)]
        if not _torch.is_faking():
            mode = stack.enter_context(_torch.fake_mode())
            inputs.append(mode.from_tensor(inputs[0]))
        watch = stack.enter_context(WriteWatch(inputs, stops=True))
        run()
    return "" if watch is None else watch.line
