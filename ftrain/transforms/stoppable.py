"""Steps that can freeze their state, for members of a sweep that diverged or were pruned."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._checks import isolated
from ftrain.core._words import kind
from ftrain.core.metrics import Last, Metrics, Sum
from ftrain.core.optimizer import like
from ftrain.core.state import TrainState
from ftrain.core.step import Steps, TrainStep
from ftrain.transforms._order import check_not_compiled
from ftrain.transforms._wrapped import check_one_state

__all__ = ["deactivate", "stoppable"]

Diverged = Callable[[Metrics], torch.Tensor]


def stoppable(steps: Steps, diverged: Diverged | None = None) -> Steps:
    """Return steps that freeze a state whose `extras["active"]` is False.

    An active state takes the step of `steps`, to the bit. A frozen state does not change: parameters,
    buffers, optimizer state, key, step count and scaler keep their bits. A state whose step diverges
    freezes with its values before that step. Under `sweep`, each member freezes on its own. A frozen
    member still costs as much as a step; `select` the others to make the program smaller.

    Args:
        steps: of `ftrain.make_steps`, or other steps on a `TrainState`.
        diverged: metrics of a step -> bool, 0-d; default: the loss is not finite.

    Returns:
        Steps whose state has the entry `active` in its extras (bool, 0-d), and whose training metrics
        have `active`; a frozen step counts in `skipped`.

    Raises:
        ValueError: in `init_state`, the extras have an entry `active` already; in a step, they have
            none; `diverged` does not return a bool 0-d tensor.
        TypeError: the train step is compiled already, or its state is not a `TrainState`.

    Example:
        >>> import ftrain
        >>> from ftrain import optim, transforms
        >>> steps = ftrain.make_steps(
        ...     lambda: torch.nn.Linear(1, 1), lambda m, x: m(x).square().mean(), optim.sgd(3.0)
        ... )
        >>> steps = stoppable(steps, lambda metrics: metrics["loss"] > 1e6)
        >>> state = steps.init_state(0)
        >>> for _ in range(20):
        ...     state, metrics = steps.train_step(state, torch.ones(4, 1))
        >>> bool(metrics["active"]), int(state.step) < 20
        (False, True)
    """
    check_not_compiled("stoppable", steps.train_step)
    is_diverged = diverged or _is_not_finite

    def init_state(seed: int) -> TrainState:
        state = steps.init_state(seed)
        check_one_state("stoppable", state)
        if _NAME in state.extras:
            raise ValueError(
                "state.extras: expected no entry 'active', which stoppable adds, got one. Apply "
                "stoppable once, or rename the entry."
            )
        active = torch.ones_like(state.step, dtype=torch.bool)
        return state.replace(extras={**state.extras, _NAME: active})

    def stopping(
        train: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
        state: TrainState,
        batch: Any,
    ) -> tuple[TrainState, Metrics]:
        active = _active(state)
        new, metrics = train(state, batch)
        with isolated(state.step.device.type):
            stops = is_diverged(metrics)
            if not isinstance(stops, torch.Tensor) or stops.ndim or stops.dtype != torch.bool:
                raise ValueError(
                    f"diverged: expected a function that returns a bool 0-d tensor, got {kind(stops)} "
                    'from it. Compare a metric: lambda metrics: metrics["loss"] > 10.'
                )
            goes_on = active & ~stops
            chosen = tree.map(lambda a, b: like(torch.where(goes_on, b, a), a), state, new)
            extras = {**chosen.extras, _NAME: goes_on}
            return chosen.replace(extras=extras), _marked(metrics, goes_on)

    step = steps.train_step
    stopped: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    if isinstance(step, TrainStep):
        stopped = dataclasses.replace(step, fn=functools.partial(stopping, step.fn))
    else:
        stopped = functools.partial(stopping, step)
    return Steps(init_state, stopped, steps.eval_step)


def deactivate(states: TrainState, keep: torch.Tensor) -> TrainState:
    """Return a state of `stoppable` steps in which only the members in `keep` stay active.

    Args:
        states: a state, or a stacked one.
        keep: bool, of the shape of `extras["active"]`: `(n,)` for `n` members. A frozen member stays
            frozen.

    Raises:
        ValueError: the state has no entry `active`, or `keep` has another shape or dtype.

    Example:
        >>> from ftrain import TrainState
        >>> state = TrainState(torch.zeros(2, dtype=torch.int64), {}, {}, (), (), torch.zeros(2, 2), {})
        >>> state = state.replace(extras={"active": torch.tensor([True, True])})
        >>> deactivate(state, torch.tensor([True, False])).extras
        {'active': tensor([ True, False])}
    """
    active = _active(states)
    if keep.shape != active.shape or keep.dtype != torch.bool:
        raise ValueError(
            f"keep: expected {kind(active)}, one entry per member, got {kind(keep)}. Pass the mask of "
            "successive_halving."
        )
    return states.replace(extras={**states.extras, _NAME: active & keep.to(active.device)})


_NAME = "active"


def _active(state: TrainState) -> torch.Tensor:
    active = state.extras.get(_NAME) if isinstance(state, TrainState) else None
    if not isinstance(active, torch.Tensor):
        raise ValueError(
            "state.extras: expected an entry 'active', got none. Make the state with the init_state "
            "that stoppable returned."
        )
    return active


def _is_not_finite(metrics: Metrics) -> torch.Tensor:
    return ~torch.isfinite(metrics["loss"])


def _marked(metrics: Metrics, active: torch.Tensor) -> Metrics:
    """Return metrics that count the step as skipped if the member is frozen, and that have `active`."""
    entries = dict(metrics.entries)
    skipped = entries.get("skipped")
    frozen = (~active).to(torch.int64)
    if isinstance(skipped, Sum):
        frozen = torch.maximum(skipped.total, frozen)
    return Metrics({**entries, "skipped": Sum(frozen), _NAME: Last(active.to(torch.float32))})
