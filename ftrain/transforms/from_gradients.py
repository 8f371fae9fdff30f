"""A training step from a function that computes gradients.

Read next: `with_sam.py`, `with_gradient_noise.py`, `project_conflicts.py`, which make such functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ftrain.core.commit import commit
from ftrain.core.gradients import GradientResult
from ftrain.core.metrics import Metrics
from ftrain.core.optimizer import Optimizer
from ftrain.core.state import TrainState
from ftrain.core.step import update
from ftrain.transforms._wrapped import Step

__all__ = ["Gradients", "from_gradients"]

#: `(state, batch) -> GradientResult`, such as `ftrain.gradients` returns.
Gradients = Callable[[TrainState, Any], GradientResult]


def from_gradients(gradients: Gradients, optimizer: Optimizer) -> Step:
    """Return the training step that applies the gradients of a given function.

    It composes the three pieces of a step, as a step of your own would:

        result = gradients(state, batch)
        proposed = ftrain.update(optimizer, state, result)
        state, metrics = ftrain.commit(state, proposed, result)

    Args:
        gradients: `(state, batch) -> GradientResult`, such as `with_sam(steps.train_step.gradients)`.
        optimizer: the optimizer of the state.

    Returns:
        `(state, batch) -> (state, metrics)`; `steps._replace(train_step=...)` completes the steps.

    Example:
        >>> import ftrain, torch
        >>> from ftrain import optim, transforms
        >>> optimizer = optim.sgd(0.1)
        >>> steps = ftrain.make_steps(
        ...     lambda: torch.nn.Linear(3, 1), lambda m, x: m(x).square().mean(), optimizer
        ... )
        >>> sam = transforms.with_sam(steps.train_step.gradients, 0.05)
        >>> steps = steps._replace(train_step=from_gradients(sam, optimizer))
        >>> state, metrics = steps.train_step(steps.init_state(0), torch.ones(4, 3))
        >>> int(state.step)
        1
    """
    closures = getattr(gradients, "closures", None)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        result = gradients(state, batch)
        extra = {} if closures is None else closures(state, batch)
        return commit(state, update(optimizer, state, result, **extra), result)

    return train_step
