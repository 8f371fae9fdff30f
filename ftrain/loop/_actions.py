"""Pending actions of a run: the order in which they run, and how they change the run's state.

Actions run in the order of `ORDER`; actions of one kind run in the order of their requests.

Read next: `run.py`, which runs them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ftrain.core import tree
from ftrain.loop._ensemble_members import expanded, statistics
from ftrain.loop._metric_totals import MetricTotals
from ftrain.loop.callback import Accumulate, Action, Evaluate, Log, Notify, Replace, Save, Stop
from ftrain.loop.events import EpochEnd, EvaluateEnd, Event
from ftrain.loop.state import LoopState

__all__ = [
    "MOST_ROUNDS",
    "ORDER",
    "applied",
    "begin_epoch",
    "endless_requests",
    "in_order",
    "numbers",
    "requested",
    "rows_to_log",
]

#: Maximum number of rounds of actions at one boundary, before callbacks count as an endless loop.
MOST_ROUNDS = 100

ORDER: tuple[type[Action], ...] = (Notify, Replace, Accumulate, Evaluate, Stop, Log, Save)

_SPLITS: dict[type[Event], str] = {EvaluateEnd: "eval", EpochEnd: "train_epoch"}


def requested(state: LoopState, actions: Iterable[Action], event: Event) -> LoopState:
    """Return a new state whose pending actions include the ones requested at an event.

    Raises:
        TypeError: an action has an unknown type.
        ValueError: an action has an invalid value.
    """
    return state.replace(pending=(*state.pending, *(_checked(each, event) for each in actions)))


def in_order(actions: Iterable[Action]) -> tuple[Action, ...]:
    """Return requested actions, sorted into the order in which the run executes them.

    Example:
        >>> in_order([Save(), Log({"a": 1}), Evaluate(name="b"), Evaluate(name="a")])[:2]
        (Evaluate(state=None, name='b'), Evaluate(state=None, name='a'))
    """
    return tuple(sorted(actions, key=lambda action: ORDER.index(type(action))))


def applied(state: LoopState, action: Action) -> LoopState:
    """Return the state after an action that changes only the state: `Replace`, `Accumulate` or `Stop`.

    Raises:
        ValueError: the training state of a `Replace` has another structure.
    """
    if isinstance(action, Replace):
        difference = tree.first_difference(action.state, state.train)
        if difference is not None:
            raise ValueError(
                f"Replace: expected a state of the same structure, got another: {difference}. Write "
                "event.state.replace(...)."
            )
        return state.replace(train=action.state)
    if isinstance(action, Accumulate):
        return state.replace(accumulate=action.k)
    assert isinstance(action, Stop)
    return state.replace(stop=state.stop or action)  # the first request gives the reason


def endless_requests(state: LoopState) -> RuntimeError:
    """Return the error for callbacks that keep requesting actions in response to their own actions."""
    return RuntimeError(
        f"callbacks: expected at most {MOST_ROUNDS} rounds of requested actions after step "
        f"{state.progress.step}, got more; pending: {list(state.pending[:3])}. Fix the callback that "
        "requests an action in response to an event that this action emits, such as Log on Logged."
    )


def rows_to_log(
    actions: Iterable[Action],
) -> tuple[dict[str, dict[str, float]], list[tuple[str, str]]]:
    """Merge `Log` actions into one row per split; also return the names with conflicting values.

    If two actions give one name different values, the row has the value of the later action.
    """
    rows: dict[str, dict[str, float]] = {}
    conflicts: set[tuple[str, str]] = set()
    for action in actions:
        if isinstance(action, Log):
            split, values = action.split or "train", numbers(action.values)
            row = rows.setdefault(split, {})
            for name in row.keys() & values.keys():
                if repr(row[name]) != repr(values[name]):
                    conflicts.add((split, name))
            row.update(values)
    return rows, sorted(conflicts)


def begin_epoch(state: LoopState) -> LoopState:
    """Return the state at the start of the next epoch if an epoch has ended and no action is pending."""
    if not state.epoch_ended or state.pending:
        return state
    progress = state.progress._replace(batch=0)
    return state.replace(progress=progress, epoch=MetricTotals(), epoch_ended=False)


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a `Log` as floats; a vector over ensemble members gives several floats."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and value.ndim == 1 and len(value) > 1:
            of_members = value.tolist()
            found |= statistics(name, of_members) | expanded({name: of_members})
            continue
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError):
            shaped = isinstance(value, torch.Tensor)
            got = f"a tensor of shape {tuple(value.shape)}" if shaped else repr(value)
            remedy = "Reduce it first: value.mean()." if shaped else "Log a number."
            raise TypeError(
                f"Log: value {name!r}: expected a number or a 0-d tensor, got {got}. {remedy}"
            ) from None
    return found


def _checked(action: Action, event: Event) -> Action:
    if type(action) not in ORDER:
        known = ", ".join(kind.__name__ for kind in ORDER)
        raise TypeError(
            f"actions requested at {type(event).__name__}: expected instances of {known}, got "
            f"{action!r}. Request one of these."
        )
    if isinstance(action, Accumulate) and action.k < 1:
        raise ValueError(
            f"Accumulate.k: expected an integer of at least 1, got {action.k!r}. Write Accumulate(2)."
        )
    if isinstance(action, Log) and action.split is None:
        return dataclasses.replace(action, split=_SPLITS.get(type(event), "train"))
    return action
