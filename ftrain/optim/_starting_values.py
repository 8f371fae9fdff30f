"""Hyper-parameters that override the initial values given to `with_hyperparams`.

A sweep has only the functions of a training run. An initial state may depend on a hyper-parameter
(`initial_accumulator_value`, the learning rate that a state records), so each member is initialised with
its own values; setting them afterwards would not change other parts of the state.
"""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

__all__ = ["StartingValues", "starting_with", "taken"]


class StartingValues:
    """Hyper-parameter values with which `with_hyperparams` initializes new optimizer states.

    Attributes:
        values: name -> 0-d tensor, one value per row under vmap.
        rows: the values of each row as numbers, for checks of their ranges.
        taken: the number of optimizers that started with the value of each name.
        outer: the values of the enclosing sweep.
    """

    def __init__(
        self, values: Mapping[str, torch.Tensor], rows: Sequence[Mapping[str, float]]
    ) -> None:
        self.values = dict(values)
        self.rows = list(rows)
        self.taken: Counter[str] = Counter()
        self.outer: StartingValues | None = None


_current: contextvars.ContextVar[StartingValues | None] = contextvars.ContextVar(
    "ftrain_starting_values", default=None
)


@contextmanager
def starting_with(values: StartingValues) -> Iterator[None]:
    """Let `with_hyperparams` initialize states with `values` inside a `with` block."""
    values.outer = _current.get()
    token = _current.set(values)
    try:
        yield
    finally:
        _current.reset(token)


def taken(
    names: Sequence[str],
) -> Iterator[tuple[dict[str, torch.Tensor], list[Mapping[str, float]]]]:
    """Yield the starting values of `names` from each enclosing `starting_with`, innermost first."""
    left, given = list(names), _current.get()
    while given is not None:
        own = [name for name in left if name in given.values]
        if own:
            given.taken.update(own)
            rows: list[Mapping[str, float]] = [
                {name: row[name] for name in own} for row in given.rows
            ]
            yield {name: given.values[name] for name in own}, rows
        left = [name for name in left if name not in own]
        given = given.outer
