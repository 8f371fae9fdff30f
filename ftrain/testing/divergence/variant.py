"""Variant of a training step under comparison: eager, or compiled by ftrain or torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import torch

from ftrain.core._torch_dispatch import dynamo_original
from ftrain.core.compile import Compiled
from ftrain.core.step import Steps
from ftrain.testing._copies import copied
from ftrain.testing.divergence.operators import Recorder, record_eager, record_graph

__all__ = ["Variant"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """Training step under comparison, whose results and operators can be recorded.

    Attributes:
        step: the step as it was given.
        fn: the Python function whose operators are recorded.
        form: `"graph"` for a step compiled by `ftrain.compile`, `"eager"` for any other.
    """

    step: Callable[[Any, Any], tuple[Any, Any]]
    fn: Callable[[Any, Any], tuple[Any, Any]]
    form: str

    @staticmethod
    def of(step: Any, name: str = "step") -> Variant:
        """Return the `Variant` for `Steps`, or for a step `(state, batch) -> (state, metrics)`.

        Raises:
            TypeError: `step` is neither; `name` is the name of the argument.
        """
        if isinstance(step, Steps):
            step = step.train_step
        if not callable(step) or isinstance(step, torch.nn.Module):
            raise TypeError(
                f"{name}: expected a step `(state, batch) -> (state, metrics)` or the result of "
                f"ftrain.make_steps, got {type(step).__name__}. Pass steps.train_step."
            )
        if isinstance(step, Compiled):
            return Variant(step, step.fn, "graph")
        return Variant(step, dynamo_original(step) or step, "eager")

    def run(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Run the step on copies of state and batch, because it may donate them."""
        return _checked(self.step(copied(state), copied(batch)))

    def record(
        self, state: Any, batch: Any, keep: Collection[int] = ()
    ) -> tuple[Recorder, tuple[Any, Any]]:
        """Run the step on copies of state and batch; return its operators and its result."""
        recorded = record_graph if self.form == "graph" else record_eager
        return recorded(self.fn, (copied(state), copied(batch)), keep)


def _checked(result: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            "step: expected a function that returns (state, metrics), got one that returns "
            f"{type(result).__name__}. Return both."
        )
    return result
