"""What the core asks of an optimizer: a pair of pure functions.

Read next: `ftrain.optim`, where the optimizers are.
"""

from __future__ import annotations

from typing import Any, Protocol

from ftrain.core import tree

__all__ = ["Optimizer", "apply_updates"]


class Optimizer(Protocol):
    """`init(params) -> opt_state` and `update(grads, opt_state, params, **extra)`."""

    @property
    def init(self) -> Any:
        """`(params) -> opt_state`."""

    @property
    def update(self) -> Any:
        """`(grads, opt_state, params, **extra) -> (updates, opt_state)`."""


def apply_updates(params: Any, updates: Any) -> Any:
    """`params + updates`, leaf by leaf, in the parameters' dtype and strides.

    >>> import torch
    >>> apply_updates({"w": torch.ones(2)}, {"w": torch.full((2,), -0.5)})
    {'w': tensor([0.5000, 0.5000])}
    """
    return tree.map(lambda p, u: (p + u).to(p.dtype), params, updates)
