"""Construction of a `TrainingMachine` for given steps and data.

Read next: `training_machine.py`, its rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch  # noqa: F401  # read by the example

from ftrain.testing.machine._batch_sources import feed_of
from ftrain.testing.machine._default_parts import builder
from ftrain.testing.machine.training_machine import TrainingMachine

__all__ = ["training_machine"]


def training_machine(
    steps: Any,
    batches: Any,
    *,
    seed: int = 0,
    donates: bool = True,
    has_nan_batches: bool = True,
    accumulates: Sequence[int] = (),
    workers: Sequence[int] = (0, 1, 2),
    tolerance: float = 1e-6,
) -> type[TrainingMachine]:
    """Return a `TrainingMachine` class for your steps and data, whose `TestCase` runs as a unittest.

    Args:
        steps: a function that builds `Steps` as a new process would, called again after each crash, so
            that anything stored outside the state is lost; with a parameter `accumulate` if
            `accumulates` is given. A `Steps` passed instead of a function survives crashes, and hides
            such faults.
        batches: a sequence of batches, used over and over, or a `ftrain.data.Loader`.
        seed: as in `TrainingMachine`, like all other arguments.
        donates: False if the step cannot be compiled.
        has_nan_batches: False if the step does not skip non-finite gradients but raises.
        accumulates: the numbers of micro-batches. Random draws in the loss differ between them.
        workers: the numbers of workers of a loader.
        tolerance: the largest relative distance between gradients with and without micro-batches.

    Raises:
        TypeError: `steps` cannot be built with `accumulate`; `batches` is neither a sequence nor a
            loader.

    Example:
        >>> from hypothesis import settings
        >>> from hypothesis.stateful import run_state_machine_as_test
        >>> from ftrain import make_steps, optim
        >>> def steps():
        ...     def loss_fn(model, batch):
        ...         return model(batch).square().mean()
        ...     return make_steps(lambda: torch.nn.Linear(2, 1), loss_fn, optim.adam(0.1))
        >>> machine = training_machine(steps, [torch.ones(3, 2), torch.zeros(3, 2)])
        >>> few = settings(max_examples=2, stateful_step_count=5, deadline=None, database=None)
        >>> run_state_machine_as_test(machine, settings=few)
    """
    build = builder(steps, needs_accumulate=any(k != 1 for k in accumulates))
    feed_of(batches)  # raises for wrong batches here instead of in each example
    attributes = {
        "make_steps": lambda self, accumulate: build(accumulate),
        "make_batches": lambda self: batches,
        "seed": seed,
        "donates": donates,
        "has_nan_batches": has_nan_batches,
        "accumulates": tuple(accumulates),
        "workers": tuple(workers),
        "tolerance": tolerance,
    }
    return type("TrainingMachine", (TrainingMachine,), attributes)
