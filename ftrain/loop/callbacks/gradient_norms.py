"""Steps that also return the gradient norm of each layer, computed in the same graph.

Read next: `gradients.py`, which monitors them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ftrain.core._checks import isolated
from ftrain.core.commit import commit
from ftrain.core.functional import Bound
from ftrain.core.gradients import GradientResult
from ftrain.core.metrics import Mean, Metrics
from ftrain.core.norm import global_norm
from ftrain.core.optimizer import Optimizer
from ftrain.core.state import TrainState
from ftrain.core.step import Steps, TrainStep, make_steps, update

__all__ = ["monitored_steps"]


def monitored_steps(
    model: nn.Module | Bound | Any, loss_fn: Any, optimizer: Optimizer, **options: Any
) -> Steps:
    """Return the steps of `ftrain.make_steps`, with an additional metric `grad_norm/<layer>` per layer.

    A layer is a module that holds parameters, named by its path. The norms are those of the
    gradients that the optimizer receives, before clipping; skipped steps have none. State and updates
    are bitwise equal to those of `make_steps`, and checkpoints are interchangeable.

    Args:
        model: as for `make_steps`.
        loss_fn: as for `make_steps`.
        optimizer: as for `make_steps`.
        **options: as for `make_steps`.

    Example:
        >>> from ftrain import optim
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> steps = monitored_steps(model, lambda m, b: m(b).mean(), optim.sgd(0.1))
        >>> state, metrics = steps.train_step(steps.init_state(0), torch.ones(4, 3))
        >>> [name for name in metrics if "/" in name]
        ['grad_norm/0', 'grad_norm/2']
    """
    steps = make_steps(model, loss_fn, optimizer, **options)
    step = steps.train_step
    assert isinstance(step, TrainStep)
    gradients = step.gradients

    def monitored(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        result = gradients(state, batch)
        closures = gradients.closures(state, batch)
        proposed = update(optimizer, state, result, **closures)
        with isolated(state.step.device.type):
            entries = {**result.metrics.entries, **_norms(result)}
        return commit(state, proposed, result._replace(metrics=Metrics(entries)))

    return steps._replace(train_step=replace(step, fn=monitored))


def _norms(result: GradientResult) -> dict[str, Mean]:
    """Return the gradient norm of each layer, with weight 0 if the step is skipped."""
    layers: dict[str, list[torch.Tensor]] = {}
    for name, grad in result.grads.items():
        layers.setdefault(name.rpartition(".")[0] or "model", []).append(grad)
    norms = {f"grad_norm/{layer}": global_norm(grads) for layer, grads in layers.items()}
    if result.finite is None:
        return {name: Mean(norm, torch.ones_like(norm)) for name, norm in norms.items()}
    return {
        name: Mean(
            torch.where(result.finite, norm, torch.zeros_like(norm)), result.finite.to(norm.dtype)
        )
        for name, norm in norms.items()
    }
