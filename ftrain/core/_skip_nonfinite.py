"""Skipping of a step with a non-finite gradient: the old leaves of the state replace the new ones.

`old_or_new` selects the leaves. The derivative of the new state, which is not selected, and of the
step's metrics is then 0 times infinity, which is NaN. So a gate stops gradients at the inputs of a
skipped step: it is the identity, and its backward pass returns 0 for a skipped step.

Read next: `commit.py`, which calls `old_or_new`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ftrain.core import _torch, tree
from ftrain.core._kept_graph import keeps_graph
from ftrain.core._torch import value_at_hand
from ftrain.core.optimizer import like

__all__ = ["Gate", "gated", "old_or_new"]


def old_or_new(
    olds: Iterable[torch.Tensor],
    news: Iterable[torch.Tensor],
    is_copied: Iterable[bool],
    finite: torch.Tensor | None,
    known: bool | None,
) -> list[torch.Tensor]:
    """Return the new leaves of a state, or the old ones if a gradient was not finite.

    The selection runs on the device, without a wait, unless the value of `finite` is known.

    Args:
        olds: the leaves of the state before the step.
        news: the leaves of the state after the step.
        is_copied: for each new leaf, True if it is copied, because it may share memory with the old
            state, the batch or another leaf.
        finite: bool, 0-d: True if all gradients are finite; `None`: not checked, the step is applied.
        known: the value of `finite`; `None` if reading it would wait for the device.
    """

    def select(old: torch.Tensor, new: torch.Tensor, copy: bool) -> torch.Tensor:
        if known is False:
            return old.clone()
        if not copy:
            return like(new, old)
        if new is old or finite is None or known:
            return like(new.clone(), old)
        return like(torch.where(finite, new, old), old)

    return list(map(select, olds, news, is_copied))


class Gate:
    """Identity on trees of tensors that passes gradients only if `passes` is True.

    Attributes:
        passes: bool, 0-d: True if the step is applied. It may be set after the call.
    """

    def __init__(self) -> None:
        self.passes: torch.Tensor | None = None

    def __call__(self, values: Any) -> Any:
        """Return equal values; gradients of tensors that require them pass through this gate.

        Under a transform of torch.func, which does not support this gate, the values have none.
        """
        if not keeps_graph() or _torch.inside_functorch() is not None:
            return values
        return tree.map(self._one, values)

    def _one(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.requires_grad:
            return x
        return _Gated.apply(x, self)  # type: ignore[no-untyped-call]


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: Gate) -> torch.Tensor:
        ctx.gate = gate
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        passes = ctx.gate.passes
        return grad if passes is None else torch.where(passes, grad, torch.zeros_like(grad)), None


def gated(values: Any, passes: torch.Tensor | None) -> Any:
    """Return the values; tensors that require a gradient get it only if `passes` is True."""
    if passes is None or not keeps_graph() or value_at_hand(passes) is not None:
        return values
    return tree.map(
        lambda x: (
            torch.where(passes, x, x.detach())
            if isinstance(x, torch.Tensor) and x.requires_grad
            else x
        ),
        values,
    )
