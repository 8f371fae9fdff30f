"""One step that trains several tasks in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ftrain.core.metrics import Mean, Metrics
from ftrain.core.state import TrainState
from ftrain.transforms._wrapped import Step, named
from ftrain.transforms.project_conflicts import check_names

__all__ = ["interleave"]


def interleave(tasks: Mapping[str, Step]) -> Step:
    """Return a step that takes one training step for each task, in the order of the mapping.

    All tasks share one state: parameters, optimizer state and key pass from one to the next. The tasks
    may have different losses, and batches of different structure. The optimizer counts every step.

    Args:
        tasks: `(state, batch) -> (state, metrics)` by name, all for states of one structure.

    Returns:
        `(state, batches) -> (state, metrics)` with `batches` a mapping by task name, or `MicroBatches`
        of such mappings. Metrics are `loss`, the mean over the tasks; `skipped`, the number of skipped
        steps; and the metrics of each task under `name/`.

    Raises:
        ValueError: there is no task; in a call, the batches have other names.

    Example:
        >>> import ftrain, torch
        >>> from ftrain import optim
        >>> losses = {
        ...     "zero": lambda model, x: model(x).square().mean(),
        ...     "one": lambda model, x: (model(x) - 1).square().mean(),
        ... }
        >>> net = lambda: torch.nn.Linear(3, 1)
        >>> steps = {name: ftrain.make_steps(net, fn, optim.sgd(0.1)) for name, fn in losses.items()}
        >>> both = interleave({name: each.train_step for name, each in steps.items()})
        >>> batches = {"zero": torch.ones(4, 3), "one": torch.ones(2, 3)}
        >>> state, metrics = both(steps["zero"].init_state(0), batches)
        >>> int(state.step), "one/loss" in metrics
        (2, True)
    """
    if not tasks:
        raise ValueError(
            "interleave: expected at least one task, got none. Write interleave({'name': step})."
        )

    def train_step(state: TrainState, batches: Any) -> tuple[TrainState, Metrics]:
        batches = check_names("interleave", batches, tasks)
        entries: dict[str, Any] = {}
        for name, step in tasks.items():
            state, metrics = step(state, batches[name])
            for shared in ("loss", "skipped"):
                if shared in metrics.entries:
                    latest = _of_task(metrics.entries[shared])
                    entries[shared] = entries[shared].merge(latest) if shared in entries else latest
            entries |= named(metrics, name)
        return state, Metrics(entries)

    return train_step


def _of_task(metric: Any) -> Any:
    """Set the total weight of a task's mean to 1 (0 stays 0), so that all tasks count equally."""
    if not isinstance(metric, Mean):
        return metric
    has_weight = metric.weight > 0
    value = metric.total / torch.where(has_weight, metric.weight, 1)
    return Mean(torch.where(has_weight, value, 0), has_weight.to(value.dtype))
