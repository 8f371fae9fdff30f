"""`scan`: several training steps in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ftrain.core.scan import scan as core_scan
from ftrain.transforms._order import check_not_compiled
from ftrain.transforms.members import size

__all__ = ["scan"]

S = TypeVar("S")
M = TypeVar("M")


def scan(train_step: Callable[[S, Any], tuple[S, M]], k: int) -> Callable[[S, Any], tuple[S, M]]:
    """Return a step that takes `k` training steps, one for each of `k` stacked batches.

        state, metrics_i = train_step(state, batches[i])    for i in 0 .. k - 1

    The result has the bits of `k` calls, eager and traced (`backend="eager"`). Compiled, it is one call
    of a program whose loop body is compiled once, for any `k`. The overhead of a call is then paid once
    instead of `k` times, which makes small models faster.

    Args:
        train_step: `(state, batch) -> (state, metrics)`, not compiled: a step of `make_steps`, of a
            sweep, or of your own.
        k: the number of steps, at least 1.

    Returns:
        `(state, batches) -> (state, metrics)`. Each leaf of `batches` has a leading axis of length `k`
        (`transforms.stack` makes it from a list of batches); so has each leaf of `metrics`.

    Raises:
        ValueError: `k` is less than 1; in a call, the leading axis is not `k` long.
        TypeError: `train_step` is compiled already.

    Example:
        >>> import ftrain, torch
        >>> from ftrain import optim, transforms
        >>> steps = ftrain.make_steps(
        ...     lambda: torch.nn.Linear(3, 1), lambda m, x: m(x).square().mean(), optim.sgd(0.1)
        ... )
        >>> batches = transforms.stack([torch.ones(4, 3), torch.zeros(4, 3)])
        >>> state, metrics = scan(steps.train_step, 2)(steps.init_state(0), batches)
        >>> int(state.step), metrics["loss"].shape
        (2, torch.Size([2]))

    Source: `jax.lax.scan`.
    """
    check_not_compiled("scan", train_step)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(
            f"k: expected an integer of at least 1, got {k!r}. Write scan(train_step, 8)."
        )

    @functools.wraps(train_step)
    def scanned(state: S, batches: Any) -> tuple[S, M]:
        length = size(batches, "batches", "batches")
        if length != k:
            raise ValueError(
                f"batches: expected a leading axis of length k = {k}, got {length}. Stack {k} batches: "
                "ftrain.transforms.stack(batches)."
            )
        return core_scan(train_step, state, batches)

    return scanned
