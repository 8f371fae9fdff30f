"""Marker for test subjects that `pytest --ftrain-laws` checks.

Read next: `plugin.py`, which collects it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["MARK", "subject"]

F = TypeVar("F", bound=Callable[[], Any])

MARK = "__ftrain_subject__"


def subject(fn: F) -> F:
    """Mark a function that returns `(steps, batches)`, so that `pytest --ftrain-laws` checks them.

    Args:
        fn: a function without arguments, at the top of a module; it is called when the check runs. It
            returns the first two arguments of `check_all`, or these and a dict of its options.

    Returns:
        The same function.

    Example:
        >>> from ftrain import make_steps, optim
        >>> import torch
        >>> @subject
        ... def regression():
        ...     def loss_fn(model, batch):
        ...         return model(batch).square().mean()
        ...     steps = make_steps(lambda: torch.nn.Linear(2, 1), loss_fn, optim.sgd(0.1))
        ...     return steps, [torch.ones(3, 2), torch.zeros(3, 2)]
    """
    setattr(fn, MARK, True)
    return fn
