"""Two training steps from one state, of which the better one is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.metrics import Last, Metrics
from ftrain.core.state import TrainState
from ftrain.transforms._wrapped import Step

__all__ = ["branch"]

Score = Callable[[TrainState, Any], torch.Tensor]


def branch(first: Step, second: Step, score: Score) -> Step:
    """Return a step that takes two steps from the same state, and keeps the one with the lower score.

    Both steps start with the same key, so they draw the same masks. The choice is made on the device,
    leaf by leaf. On a tie, or if both scores are NaN, the first step is kept; a number is better than
    NaN.

    Args:
        first: `(state, batch) -> (state, metrics)`.
        second: likewise; both return states and metrics of one structure.
        score: `(state, batch) -> score`, 0-d, lower is better; called with each new state, such as
            `lambda state, batch: eval_step(state, batch)["loss"]`.

    Returns:
        `(state, batch) -> (state, metrics)`. The metrics are those of the kept step, with the entry
        `branch`: 0 for the first step, 1 for the second.

    Raises:
        ValueError: in a call, the two steps return different structures, or a score is not 0-d.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> steps = [
        ...     ftrain.make_steps(
        ...         lambda: torch.nn.Linear(3, 1), lambda m, x: m(x).square().mean(), optim.sgd(rate)
        ...     )
        ...     for rate in (0.01, 0.1)
        ... ]
        >>> score = lambda state, batch: steps[0].eval_step(state, batch)["loss"]
        >>> better = branch(steps[0].train_step, steps[1].train_step, score)
        >>> state, metrics = better(steps[0].init_state(0), torch.ones(4, 3))
        >>> metrics["branch"]
        tensor(1)
    """

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        outputs = first(state, batch), second(state, batch)
        difference = tree.first_difference(outputs[1], outputs[0])
        if difference is not None:
            raise ValueError(
                "branch: expected two steps whose results have the same structure, got a difference: "
                f"{difference}. Build both with the same model, optimizer and metrics."
            )
        a, b = (score(new, batch) for new, _ in outputs)
        if a.ndim or b.ndim:
            raise ValueError(
                f"branch: expected a 0-d score, got shape {tuple((a if a.ndim else b).shape)}. Reduce "
                "it: score.mean()."
            )
        is_second = (b < a) | (torch.isnan(a) & ~torch.isnan(b))
        new, metrics = tree.map(lambda x, y: torch.where(is_second, y, x), *outputs)
        return new, Metrics({**metrics.entries, "branch": Last(is_second.to(torch.int64))})

    return train_step
