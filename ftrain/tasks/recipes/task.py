"""Task: the loss, the evaluation and the metrics of a kind of problem.

Read next: `images.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

__all__ = ["Task"]


@dataclasses.dataclass(frozen=True)
class Task:
    """Loss, evaluation and names of the metrics of a kind of problem.

    Attributes:
        loss_fn: `(model, batch) -> (loss, metrics)`, for training.
        eval_fn: the same for evaluation, without smoothing, mixing and other regularization, and with
            more metrics.
        metrics: names of the metrics that `eval_fn` returns in addition to `loss`; the first is the
            usual one for comparing models.

    Example:
        >>> import ftrain, torch
        >>> from ftrain import optim, tasks
        >>> task = tasks.image_classification(label_smoothing=0.1)
        >>> task.metrics
        ('accuracy', 'calibration_error')
        >>> init_state, train_step, eval_step = ftrain.make_steps(
        ...     torch.nn.Linear(2, 3), task.loss_fn, optim.adam(1e-3), eval_fn=task.eval_fn
        ... )
        >>> sorted(eval_step(init_state(0), {"x": torch.ones(4, 2), "y": torch.zeros(4).long()}))
        ['accuracy', 'calibration_error', 'loss']
    """

    loss_fn: Callable[..., Any]
    eval_fn: Callable[..., Any]
    metrics: tuple[str, ...]
