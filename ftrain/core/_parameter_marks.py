"""Marks that make plain tensors count as `nn.Parameter`, and resetting of their `requires_grad`.

The marks make `isinstance(x, nn.Parameter)` True. A loss may add up the squares of the parameters that
it finds in this way among a module's attributes; with plain tensors, the sum would be empty.
`nn.Parameter` accepts every tensor with the attribute `_is_param` (torch 1.12 and later).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable

import torch

from ftrain.core import _torch
from ftrain.core.compile._trace import is_tracing

__all__ = ["marked", "not_required", "turn_off", "unmark"]

_MARK = "_is_param"
# Two threads may evaluate one state with two models at a time.
_LOCK = threading.Lock()


def marked(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Mark tensors as parameters until `unmark`; return those that are not parameters themselves.

    The mark of a tensor is the number of running calls that marked it.

    The tracer registers a constant that is a parameter in its own module, which refuses tensors that are
    results of operators: those of a traced gradient of a gradient get no mark.
    """
    if torch.compiler.is_dynamo_compiling():
        return []
    if is_tracing():
        with _torch.unwatched():
            tensors = [tensor for tensor in tensors if tensor.grad_fn is None]
    with _LOCK:
        new = [tensor for tensor in tensors if tensor.__dict__.get(_MARK) is not True]
        for tensor in new:
            tensor.__dict__[_MARK] = tensor.__dict__.get(_MARK, 0) + 1
    return new


def unmark(tensors: Iterable[torch.Tensor]) -> None:
    """Remove the marks that `marked` set on tensors, unless another running call needs them."""
    with _LOCK:
        for tensor in tensors:
            calls = tensor.__dict__.pop(_MARK, 1)
            if calls > 1:
                tensor.__dict__[_MARK] = calls - 1


def not_required(tensors: Collection[torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors that do not require a gradient."""
    with _torch.unwatched():
        return [tensor for tensor in tensors if not tensor.requires_grad]


def turn_off(tensors: Collection[torch.Tensor]) -> None:
    """Turn `requires_grad` off again where a call turned it on.

    An evaluation runs on the tensors of the state itself. A loss may turn the flags of some parameters
    off and on again, for a part of it whose gradient they do not take.
    """
    if len(not_required(tensors)) < len(tensors):
        for tensor in tensors:
            tensor.requires_grad_(False)
