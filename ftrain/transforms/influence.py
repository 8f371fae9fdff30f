"""Influence of training examples on the losses of others, by TracIn.

Read next: `per_sample.py`, whose gradients are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core import tree
from ftrain.core._loss import LossFn
from ftrain.core.precision import Policy, Precision
from ftrain.core.state import TrainState
from ftrain.transforms.per_sample import Model, per_sample_grads

__all__ = ["tracin"]


def tracin(
    model: Model,
    loss_fn: LossFn,
    *,
    precision: Precision | Policy = "32-true",
    chunk_size: int | None = None,
) -> Callable[[Sequence[TrainState], Sequence[float], Any, Any], Tensor]:
    r"""Return a function that computes the influence of training examples on other examples' losses.

    The influence $\sum_t \eta_t \langle g_i(t), g_j(t) \rangle$ over checkpoints t is the amount by
    which steps on example i lowered the loss of example j, to first order. Examples of positive
    influence are called proponents, and examples of negative influence opponents.

    Args:
        model: as of `make_steps`.
        loss_fn: as of `make_steps`; called with batches of one example.
        precision: as of `make_steps`.
        chunk_size: examples computed at a time; default: all.

    Returns:
        A function of the states of checkpoints, the learning rate at each, a batch of n training
        examples, and a batch of m other examples. It returns a tensor `(n, m)`.

    Raises:
        ValueError: as of `per_sample_grads`; in a call, no states, or another number of learning rates.

    References:
        Pruthi, Liu, Kale and Sundararajan, "Estimating training data influence by tracing gradient
        descent", NeurIPS 2020.

    Example:
        >>> from torch import nn
        >>> from ftrain import make_steps, optim
        >>> def loss_fn(model, batch):
        ...     return model(batch).square().mean()
        >>> state = make_steps(nn.Linear(2, 1), loss_fn, optim.sgd(0.1)).init_state(0)
        >>> influence = tracin(nn.Linear(2, 1), loss_fn)
        >>> influence([state], [0.1], torch.ones(5, 2), torch.ones(3, 2)).shape
        torch.Size([5, 3])
    """
    grads_of = per_sample_grads(model, loss_fn, precision=precision, chunk_size=chunk_size)

    def rows(state: TrainState, batch: Any) -> Tensor:
        return torch.cat([g.flatten(1) for g in tree.leaves(grads_of(state, batch))], 1)

    def influence(
        states: Sequence[TrainState], learning_rates: Sequence[float], batch: Any, other: Any
    ) -> Tensor:
        if not states or len(states) != len(learning_rates):
            raise ValueError(
                f"states: expected one or more, each with a learning rate, got {len(states)} states "
                f"and {len(learning_rates)} learning rates. Pass one learning rate for each state."
            )
        terms = [
            rate * (rows(state, batch) @ rows(state, other).T)
            for state, rate in zip(states, learning_rates, strict=True)
        ]
        return torch.stack(terms).sum(0)

    return influence
