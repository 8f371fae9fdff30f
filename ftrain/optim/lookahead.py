"""Lookahead: slow weights that follow a fast optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.optimizer import like
from ftrain.optim import _checks
from ftrain.optim._checked import checked
from ftrain.optim._leaves import (
    compute_dtype,
    first_device,
    matching_leaves,
    parameters,
    scalars_by_device,
)
from ftrain.optim._rate import zero_count
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = ["LookaheadState", "lookahead"]


class LookaheadState(NamedTuple):
    """State of `lookahead`.

    Attributes:
        fast_steps: int64, 0-d. Updates since the last move of the slow weights, less than `k`.
        slow: the slow weights, a tree like the parameters; at least float32.
        inner: the state of the fast optimizer.
    """

    fast_steps: torch.Tensor
    slow: PyTree
    inner: PyTree


def lookahead(
    inner: GradientTransformation, k: int = 6, alpha: Hyperparameter = 0.5
) -> GradientTransformation:
    r"""Return `inner` with slow weights, which move toward the fast weights every k steps.

    $$s = s + \alpha (p - s), \qquad p = s$$

    at every $k$-th update, where $p$ are the parameters after the update of `inner`. The state of
    `inner` is not reset. To evaluate the slow weights between two such updates, pass
    `optim.get(opt_state, "slow")` as the parameters.

    Args:
        inner: the fast optimizer.
        k: the number of updates of `inner` for each move of the slow weights, >= 1.
        alpha: the fraction of the distance by which the slow weights move, in [0, 1].

    Returns:
        A transformation with a `LookaheadState`. `update` needs `params`.

    Raises:
        ValueError: `k` or `alpha` out of their range; `update` is called without parameters.

    Example:
        >>> from ftrain import optim
        >>> optimizer = lookahead(optim.sgd(1.0), k=2)
        >>> params = {"w": torch.tensor([4.0])}
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update({"w": torch.tensor([1.0])}, state, params)
        ...     params = optim.apply_updates(params, updates)
        >>> params, state.slow  # half the way from 4 to 2
        ({'w': tensor([3.])}, {'w': tensor([3.])})

    References:
        Zhang, Lucas, Hinton, Ba (2019), [Lookahead Optimizer: k steps forward, 1 step
        back](https://arxiv.org/abs/1907.08610); `k` and `alpha` as in the paper's image experiments.
    """
    _checks.optimizer("lookahead", inner)
    _checks.positive_int("k", k)
    _checks.closed_fraction("alpha", alpha)
    returns = isinstance(alpha, torch.Tensor) or alpha < 1

    def init(params: PyTree) -> LookaheadState:
        leaves, _ = parameters(params)
        slow = tree.map(lambda p: p.to(compute_dtype(p.dtype), copy=True), params)
        return LookaheadState(zero_count(first_device(leaves)), slow, inner.init(params))

    def update(
        grads: PyTree, state: LookaheadState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, LookaheadState]:
        updates, new = inner.update(grads, state.inner, params, **extra)
        (slows, ps, us), treedef = matching_leaves(
            ("state.slow", state.slow), ("params", params), ("updates", updates), strict_dtype=False
        )
        steps = state.fast_steps + 1
        meets = steps == k
        place = scalars_by_device(1 - alpha)
        moves, followed = [], []
        for s, p, u in zip(slows, ps, us, strict=True):
            (back,) = place(s.device, s.dtype)
            met = meets.to(s.device)
            move = torch.where(met, u - back * (p + u - s), u) if returns else u
            moves.append(move)
            followed.append(like(torch.where(met, p + move, s), s))
        return (
            tree.unflatten(treedef, moves),
            LookaheadState(torch.where(meets, 0, steps), tree.unflatten(treedef, followed), new),
        )

    return checked("lookahead", LookaheadState, init, update, needs_params=True)
