"""Reference run of a `TrainingMachine`: the same batches, uninterrupted and without donation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.testing._copies import copied

__all__ = ["Event", "History", "Uninterrupted", "digest"]


class Event(NamedTuple):
    """Training step that the machine took, which the uninterrupted run repeats.

    Attributes:
        is_nan: True if the batch contained NaN.
        accumulate: the number of micro-batches.
    """

    is_nan: bool
    accumulate: int


History = tuple[Event, ...]


class Outcome(NamedTuple):
    """State and metrics after the last step of a history; metrics are `None` before the first step."""

    state: Any
    metrics: Any


@dataclasses.dataclass
class Uninterrupted:
    """States of an uninterrupted reference run, computed when first needed.

    Attributes:
        init: returns the first state.
        steps_of: returns the `Steps` for a number of micro-batches.
        batch: returns the batch of an event at a position.
    """

    init: Callable[[], Any]
    steps_of: Callable[[int], Any]
    batch: Callable[[int, Event], Any]
    _known: dict[History, Outcome] = dataclasses.field(default_factory=dict)
    _evaluated: dict[History, str] = dataclasses.field(default_factory=dict)

    def after(self, history: History) -> Outcome:
        """Return state and metrics of the reference run after these events (training steps)."""
        if history not in self._known:
            if history:
                before = copied(self.after(history[:-1]).state)
                _, train_step, _ = self.steps_of(history[-1].accumulate)
                batch = self.batch(len(history) - 1, history[-1])
                self._known[history] = Outcome(*train_step(before, batch))
            else:
                self._known[history] = Outcome(self.init(), None)
        return self._known[history]

    def evaluated(self, history: History) -> str:
        """Return a digest of the evaluation metrics on the next batch, after these training steps."""
        if history not in self._evaluated:
            _, _, eval_step = self.steps_of(1)
            batch = self.batch(len(history), Event(False, 1))
            metrics = eval_step(copied(self.after(history).state), batch)
            self._evaluated[history] = digest(metrics)
        return self._evaluated[history]


def digest(metrics: Any) -> str:
    """Return the sha256 of a step's metrics, which are tensors or Python numbers."""
    return tree.digest(tree.map(torch.as_tensor, metrics))
