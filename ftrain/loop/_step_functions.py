"""Training step and evaluation step of a trainer, on one rank or several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftrain.core.step import Steps
from ftrain.loop._one_rank import ALONE, TOGETHER, OneRank

__all__ = ["Step", "eval_step_on_ranks", "train_and_eval_step"]

Step = Callable[[Any, Any], tuple[Any, Any]]


def train_and_eval_step(steps: Any) -> tuple[Step, Callable[[Any, Any], Any] | None]:
    """Split a trainer's `steps` into the training step and the evaluation step (`None` if missing).

    Raises:
        TypeError: `steps` is of another kind.
    """
    if isinstance(steps, Steps):
        return steps.train_step, steps.eval_step
    if isinstance(steps, tuple) and len(steps) == 2 and all(map(callable, steps)):
        return steps
    if callable(steps) and not isinstance(steps, torch.nn.Module):
        return steps, None
    raise TypeError(
        "steps: expected the result of ftrain.make_steps, a step `(state, batch) -> (state, "
        f"metrics)`, or a pair (step, eval_step), got {type(steps).__name__}. Write "
        "Trainer(ftrain.make_steps(...))."
    )


def eval_step_on_ranks(
    trainer: Any, data: Any, ranks: OneRank, argument: str
) -> tuple[Callable[[Any, Any], Any] | None, Callable[[Any], tuple[int, int]], OneRank]:
    """Return the step, the sample counter and the group of ranks with which to evaluate `data`.

    Args:
        trainer: the trainer.
        data: the evaluation data; `None`: no evaluation.
        ranks: the ranks of the run.
        argument: the name of the data, for messages.

    Raises:
        ValueError: the ranks cannot divide an evaluation over these data.
    """
    step, count = trainer._eval_step, trainer.count_samples
    if data is None or ranks.is_one:
        return step, count, ALONE
    if ranks.shares_rows(data):
        ranks.check_data(data, argument)
        return step, ranks.counting(count), TOGETHER
    if trainer._eval_in_turns is None:
        raise ValueError(
            f"{argument}: expected a data.Loader with rank and ranks, since all ranks must call the "
            "evaluation step of this trainer together, got other data. Write data.Loader(..., "
            "rank=mesh.get_rank(), ranks=mesh.size())."
        )
    return trainer._eval_in_turns, count, ranks
