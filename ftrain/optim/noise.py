"""Noise added to gradients, from a key in the state."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.core import random, tree
from ftrain.optim import _checks
from ftrain.optim._checked import checked
from ftrain.optim._leaves import (
    add_scaled,
    compute_dtype,
    first_device,
    gradients,
    parameters,
    scalars_by_device,
)
from ftrain.optim._rate import double, zero_count
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["AddNoiseState", "add_noise"]


class AddNoiseState(NamedTuple):
    """State of `add_noise`.

    Attributes:
        count: int64, 0-d. Updates so far.
        key: int32, `(2,)`. The key of the next update's noise.
    """

    count: Count
    key: torch.Tensor


def add_noise(
    eta: Hyperparameter, gamma: Hyperparameter = 0.55, *, key: int | torch.Tensor
) -> GradientTransformation:
    r"""Add normal noise of decaying variance to the gradients.

    $$u = g + n, \qquad n \sim N\left(0, \frac{\eta}{(1 + t)^\gamma}\right)$$

    The noise is a function of the key in the state: the same eager, compiled and after a resume,
    and independent of torch's global generators. `optax.add_noise` has the same variance, but draws
    other numbers.

    Args:
        eta: the initial variance, a finite number >= 0; the paper tries 0.01, 0.3 and 1.
        gamma: the exponent of the decay, a finite number >= 0; with 0 the variance is constant.
        key: a seed, or a key (int32, `(2,)`). Replicas of a vmapped run that are built with one seed
            draw the same noise: build them with the rows of `ftrain.random.split(key, n)`.

    Returns:
        A transformation with an `AddNoiseState`.

    Raises:
        ValueError: a hyper-parameter is out of range; `key` is a tensor, but not a single key.
        TypeError: `key` is neither a tensor nor an integer.

    Example:
        >>> noisy = add_noise(0.01, key=0)
        >>> grads = {"w": torch.zeros(3)}
        >>> state = noisy.init(grads)
        >>> first, state = noisy.update(grads, state)
        >>> second, state = noisy.update(grads, state)
        >>> bool((first["w"] != second["w"]).all()), state.count
        (True, tensor(2))

    References:
        Neelakantan et al. (2015), [Adding Gradient Noise Improves Learning for Very Deep
        Networks](https://arxiv.org/abs/1511.06807).
    """
    _checks.non_negative("eta", eta)
    _checks.non_negative("gamma", gamma)
    first_key = key if isinstance(key, torch.Tensor) else random.key(key)
    random.split(first_key)  # raises unless this is a single key

    def init(params: PyTree) -> AddNoiseState:
        leaves, _ = parameters(params)
        device = first_device(leaves)
        return AddNoiseState(zero_count(device), first_key.clone().to(device))

    def update(
        grads: PyTree, state: AddNoiseState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AddNoiseState]:
        leaves, treedef = gradients(grads)
        count = state.count + 1
        variance = eta / count.to(torch.float64) ** double(gamma, count.device)
        place = scalars_by_device(variance.sqrt())
        updates = []
        for index, g in enumerate(leaves):
            dtype = compute_dtype(g.dtype)
            (deviation,) = place(g.device, dtype)
            # Row 1 of a split of the key; row 0 is the next key.
            noise = random.normal(state.key.to(g.device), g.shape, dtype, folds=(1, index))
            updates.append(add_scaled(g.to(dtype), noise, deviation))
        new = AddNoiseState(count, random.fold_in(state.key, 0))
        return tree.unflatten(treedef, updates), new

    return checked("add_noise", AddNoiseState, init, update)
