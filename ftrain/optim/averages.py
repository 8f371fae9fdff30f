"""Averages of the parameters, kept in the optimizer's state: `ema` and `swa`.

The weights are never swapped. To evaluate an average, pass it as the parameters:

    average = optim.get(state.opt_state, "ema")
    metrics = eval_step(state.replace(params=average), batch)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.optimizer import apply_updates, like
from ftrain.optim import _checks
from ftrain.optim._checked import checked
from ftrain.optim._leaves import (
    add_scaled,
    compute_dtype,
    first_device,
    parameters,
    scalars_by_device,
)
from ftrain.optim._rate import double, zero_count
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = ["EmaState", "SwaState", "ema", "swa"]


class EmaState(NamedTuple):
    """State of `ema`.

    Attributes:
        updates_averaged: int64, 0-d. Updates that the average has seen.
        ema: the average, a tree like the parameters; at least float32.
        inner: the optimizer's own state.
    """

    updates_averaged: torch.Tensor
    ema: PyTree
    inner: PyTree


class SwaState(NamedTuple):
    """State of `swa`.

    Attributes:
        updates_seen: int64, 0-d. Updates so far.
        averaged: int64, 0-d. Number of sets of parameters in the mean.
        swa: the average, a tree like the parameters, at least float32; before `start` a copy of them.
        inner: the optimizer's own state.
    """

    updates_seen: torch.Tensor
    averaged: torch.Tensor
    swa: PyTree
    inner: PyTree


def ema(
    inner: GradientTransformation, decay: Hyperparameter = 0.999, *, warmup: bool = True
) -> GradientTransformation:
    r"""Return `inner` with an exponential moving average of the parameters in its state.

    $$a = d a + (1 - d) p$$

    after each update, with $a = p$ before the first one. The updates of `inner` are not changed. With
    warmup, $d = \min(\mathrm{decay}, (1 + t) / (10 + t))$ after $t$ earlier updates, so that the average
    of a short run does not depend on its start; without warmup, $d$ is `decay`.

    Make it the outermost wrapper, around everything that changes the updates: it averages the
    resulting parameters. Around `multi_steps` it averages at each micro-step; inside of `multi_steps`,
    at each update.

    Args:
        inner: the whole optimizer.
        decay: in [0, 1).
        warmup: True to let the decay grow from 0.1 to `decay`.

    Returns:
        A transformation with an `EmaState`. `update` needs `params`.

    Raises:
        ValueError: `decay` out of its range; `update` is called without parameters.

    Example:
        >>> from ftrain import optim
        >>> optimizer = ema(optim.sgd(1.0), 0.5, warmup=False)
        >>> params = {"w": torch.tensor([2.0])}
        >>> updates, state = optimizer.update({"w": torch.tensor([1.0])}, optimizer.init(params), params)
        >>> optim.apply_updates(params, updates), optim.get(state, "ema")
        ({'w': tensor([1.])}, {'w': tensor([1.5000])})

    References:
        Polyak, Juditsky (1992), "Acceleration of Stochastic Approximation by Averaging"; the warmup
        is that of TensorFlow's `ExponentialMovingAverage(num_updates)`.
    """
    _checks.optimizer("ema", inner)
    _checks.fraction("decay", decay)

    def init(params: PyTree) -> EmaState:
        leaves, _ = parameters(params)
        return EmaState(zero_count(first_device(leaves)), _copies(params), inner.init(params))

    def update(
        grads: PyTree, state: EmaState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, EmaState]:
        updates, new = inner.update(grads, state.inner, params, **extra)
        kept: Hyperparameter = decay
        if warmup:
            t = state.updates_averaged.to(torch.float64)
            kept = torch.minimum((1 + t) / (10 + t), double(decay, t.device))
        place = scalars_by_device(1 - kept)

        def moved(a: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
            (share,) = place(a.device, a.dtype)
            return like(add_scaled(a, p.to(a.dtype) - a, share), a)

        average = tree.map(moved, state.ema, apply_updates(params, updates))
        return updates, EmaState(state.updates_averaged + 1, average, new)

    return checked("ema", EmaState, init, update, needs_params=True)


def swa(inner: GradientTransformation, start: int, every: int = 1) -> GradientTransformation:
    """Return `inner` with stochastic weight averaging of the parameters from update `start` on.

    The mean is over the parameters after updates `start`, `start + every`, `start + 2 every`, ...
    (the first update is number 1); before `start` the average equals the parameters. The learning rate
    of the averaging phase is set by the optimizer's schedule; in the paper it is constant or cyclic.
    Statistics of BatchNorm layers must be recomputed: run the model with the averaged weights over some
    batches.

    Args:
        inner: the whole optimizer.
        start: the number of the first update whose parameters are averaged, >= 1.
        every: the number of updates from one averaged value to the next, >= 1; the length of a cycle.

    Returns:
        A transformation with a `SwaState`. `update` needs `params`.

    Raises:
        ValueError: a count below 1; `update` is called without parameters.

    Example:
        >>> from ftrain import optim
        >>> optimizer = swa(optim.sgd(1.0), start=2)
        >>> params = {"w": torch.tensor([5.0])}
        >>> state = optimizer.init(params)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update({"w": torch.tensor([1.0])}, state, params)
        ...     params = optim.apply_updates(params, updates)
        >>> params, optim.get(state, "swa")  # the mean of 3 and 2
        ({'w': tensor([2.])}, {'w': tensor([2.5000])})

    References:
        Izmailov, Podoprikhin, Garipov, Vetrov, Wilson (2018), [Averaging Weights Leads to Wider
        Optima and Better Generalization](https://arxiv.org/abs/1803.05407).
    """
    _checks.optimizer("swa", inner)
    _checks.positive_int("start", start)
    _checks.positive_int("every", every)

    def init(params: PyTree) -> SwaState:
        leaves, _ = parameters(params)
        device = first_device(leaves)
        return SwaState(zero_count(device), zero_count(device), _copies(params), inner.init(params))

    def update(
        grads: PyTree, state: SwaState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SwaState]:
        updates, new = inner.update(grads, state.inner, params, **extra)
        seen = state.updates_seen + 1
        takes = (seen >= start) & ((seen - start) % every == 0)
        averaged = state.averaged + takes
        share = torch.where(takes, 1 / averaged.to(torch.float64).clamp(min=1), 0.0)
        share = torch.where(seen <= start, 1.0, share)
        place = scalars_by_device(share)

        def moved(a: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
            (share_here,) = place(a.device, a.dtype)  # exact at 0 and at 1, as lerp is
            return like(torch.lerp(a, p.to(a.dtype), share_here), a)

        average = tree.map(moved, state.swa, apply_updates(params, updates))
        return updates, SwaState(seen, averaged, average, new)

    return checked("swa", SwaState, init, update, needs_params=True)


def _copies(params: PyTree) -> PyTree:
    return tree.map(lambda p: p.to(compute_dtype(p.dtype), copy=True), params)
