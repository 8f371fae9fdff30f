"""Gradients that a backward pass accumulates in the attribute `.grad`, as `.backward()` does.

The backward of an autograd function may itself call `torch.autograd.backward`: reversible layers and
some implementations of activation checkpointing do, in order to compute a part of the model again. The
gradients of that part are then not returned, but added to the attribute `.grad` of its parameters.

Read next: `_differentiate.py`, which adds them to the gradients that autograd returns.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

import torch

from ftrain.core import _torch
from ftrain.core._torch_tensors import version
from ftrain.core.errors import ImpureFunctionError

__all__ = [
    "Accumulated",
    "accumulated",
    "refuse_accumulated",
    "refuse_called_backward",
    "with_accumulated",
]

Grads = Sequence[torch.Tensor | None]
#: The attribute `.grad` of each leaf, with its version.
Accumulated = list[tuple[torch.Tensor | None, int]]


def accumulated(tensors: Sequence[torch.Tensor]) -> Accumulated:
    """Return the attribute `.grad` of each tensor that is an autograd leaf, and its version."""
    with _torch.unwatched():
        grads = [t.grad if t.is_leaf else None for t in tensors]
        return [(grad, 0 if grad is None else version(grad)) for grad in grads]


def with_accumulated(grads: Grads, inputs: Sequence[torch.Tensor]) -> Grads:
    """Return gradients plus those that the backward pass added to the `.grad` of the inputs.

    Args:
        grads: the gradients that autograd returned; `None` where there is none.
        inputs: autograd leaves that had no `.grad` before the backward pass.
    """
    with _torch.unwatched():
        found = [x.grad for x in inputs]
    if all(map(operator.is_, found, itertools.repeat(None))):  # 70 ns per input
        return grads
    return [
        grad if more is None else more.detach() if grad is None else grad + more
        for grad, more in zip(grads, found, strict=True)
    ]


def refuse_called_backward(inputs: Sequence[torch.Tensor], name: str) -> None:
    """Raise if a function added gradients to the `.grad` of its inputs before it returned its value.

    Args:
        inputs: autograd leaves that had no `.grad` before the call.
        name: the name of the function in the message.

    Raises:
        ImpureFunctionError: one of the inputs has a `.grad`.
    """
    with _torch.unwatched():
        found = [x.grad for x in inputs]
    if not all(map(operator.is_, found, itertools.repeat(None))):  # 70 ns per input
        raise ImpureFunctionError(
            f"{name} called backward(): expected no gradients in the attribute .grad of the parameters "
            "when the loss is returned, since it is unclear if the step must add them to its own. Call "
            "torch.autograd.grad(outputs, inputs) instead, or model.zero_grad() after it."
        )


def refuse_accumulated(before: Accumulated, tensors: Sequence[torch.Tensor], name: str) -> None:
    """Raise if a derivative was added to `.grad` that has to be returned, with its graph.

    Raises:
        ImpureFunctionError: the `.grad` of one of the tensors is not the one of `before`.
    """
    pairs = zip(before, accumulated(tensors), strict=True)
    if any(old is not new or a != b for (old, a), (new, b) in pairs):
        raise ImpureFunctionError(
            f"a backward function of {name} called backward(), which adds gradients to the attribute "
            ".grad, where they have no derivatives: expected gradients that can be differentiated "
            "again. Pass the parameters to the apply() of the autograd function, and return their "
            "gradients from its backward, computed by torch.autograd.grad(..., create_graph=True)."
        )
