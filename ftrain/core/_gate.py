"""Gates that stop gradients at the inputs of a skipped step.

`commit` selects the old state if a gradient is not finite. The derivative of the new state, which is not
selected, and of the step's metrics is then 0 times infinity, which is NaN. A gate is the identity; its
backward pass returns 0 for a skipped step.
"""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import _torch, tree
from ftrain.core._kept_graph import keeps_graph
from ftrain.core._torch import value_at_hand

__all__ = ["Gate", "gated"]


class Gate:
    """Identity on trees of tensors that passes gradients only if `passes` is True.

    Attributes:
        passes: bool, 0-d: True if the step is applied. It may be set after the call.
    """

    def __init__(self) -> None:
        self.passes: torch.Tensor | None = None

    def __call__(self, values: Any) -> Any:
        """Return the values; gradients of tensors that require them pass through this gate.

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
