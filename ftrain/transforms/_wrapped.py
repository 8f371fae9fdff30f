"""Steps that call another step and keep its name and the attributes that a loop reads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from ftrain.core._words import a_or_an
from ftrain.core.metrics import Metrics
from ftrain.core.state import TrainState
from ftrain.core.step import Steps, TrainStep

__all__ = ["Step", "check_free", "check_one_state", "is_applied", "named", "wrapped"]

#: `(state, batch) -> (state, metrics)`.
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def wrapped(steps: Steps, init_state: Callable[[int], TrainState], fn: Step) -> Steps:
    """Return `steps` with another initial state, and with a training step that calls the old one."""
    step: Any = steps.train_step
    if isinstance(step, TrainStep):
        return steps._replace(init_state=init_state, train_step=dataclasses.replace(step, fn=fn))
    return steps._replace(init_state=init_state, train_step=functools.wraps(step)(fn))


def check_free(function: str, state: TrainState, name: str) -> None:
    """Raise unless `state` is a `TrainState` whose extras have no entry `name`."""
    check_one_state(function, state)
    if name in state.extras:
        raise ValueError(
            f"{function}: expected extras without an entry {name!r}, got {sorted(state.extras)}. Choose "
            f"another name: {function}(..., name=...)."
        )


def check_one_state(function: str, state: Any) -> None:
    """Raise unless `state` is a single `TrainState`."""
    if not isinstance(state, TrainState):
        raise TypeError(
            f"{function}: expected the steps of one model, on a TrainState, got steps on "
            f"{a_or_an(type(state).__name__)}. Apply {function} to the steps of each model, before "
            "transforms.alternate combines them."
        )


def is_applied(old: TrainState, new: TrainState) -> torch.Tensor:
    """Return a 0-d bool tensor: True if the step between the two states was not skipped."""
    return new.step != old.step


def named(metrics: Metrics, name: str) -> dict[str, Any]:
    """Return metrics with `name/` before each name."""
    return {f"{name}/{each}": entry for each, entry in metrics.entries.items()}
