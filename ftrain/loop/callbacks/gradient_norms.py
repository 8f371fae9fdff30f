"""Steps that also report the norm of each layer's gradient, computed in the same graph.

Read next: `gradients.py`, which monitors them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ftrain.core import tree
from ftrain.core.functional import Bound
from ftrain.core.metrics import Mean, Metrics
from ftrain.core.norm import global_norm
from ftrain.core.optimizer import Optimizer
from ftrain.core.state import TrainState
from ftrain.core.step import Steps, make_steps
from ftrain.optim import GradientTransformation

__all__ = ["monitored_steps"]

_INNER = "learning_rate.inner"


def monitored_steps(
    model: nn.Module | Bound | Any, loss_fn: Any, optimizer: Optimizer, **options: Any
) -> Steps:
    """Return the steps of `ftrain.make_steps`, with additional metrics `grad_norm/<layer>`.

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
    plain = make_steps(model, loss_fn, optimizer, **options)
    recording = make_steps(model, loss_fn, _recording(optimizer), **options)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        before = _Recorded(_norms(state.params, zero=True), state.opt_state)
        after, metrics = recording.train_step(state.replace(opt_state=before), batch)
        entries = {
            "learning_rate" + name.removeprefix(_INNER) if name.startswith(_INNER) else name: value
            for name, value in metrics.entries.items()
        }
        skipped = metrics.entries.get("skipped")
        for layer, norm in after.opt_state.norms.items():
            taken = torch.ones_like(norm)
            if skipped is not None:
                taken = taken - skipped.value.to(norm.dtype)
            entries[f"grad_norm/{layer}"] = Mean(norm.clone(), taken)
        return after.replace(opt_state=after.opt_state.inner), Metrics(entries)

    train_step.__dict__ |= vars(recording.train_step)  # attributes that the loop reads from a step
    return Steps(plain.init_state, train_step, plain.eval_step)


class _Recorded(NamedTuple):
    """Optimizer state during one step.

    Attributes:
        norms: `{layer: 0-d tensor}`.
        inner: the state of the wrapped optimizer.
    """

    norms: dict[str, torch.Tensor]
    inner: Any


def _recording(optimizer: Optimizer) -> GradientTransformation:
    """Wrap an optimizer so that its state also holds the norms of the gradients."""

    def init(params: Any) -> _Recorded:
        return _Recorded(_norms(params, zero=True), optimizer.init(params))

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, _Recorded]:
        updates, inner = optimizer.update(grads, state.inner, params, **extra)
        return updates, _Recorded(_norms(grads), inner)

    return GradientTransformation(init, update)


def _norms(values: dict[str, torch.Tensor], *, zero: bool = False) -> dict[str, torch.Tensor]:
    """Return the norm of each layer; if `zero`, zeros of the same dtype and device."""
    layers: dict[str, list[torch.Tensor]] = {}
    for name, value in values.items():
        layers.setdefault(name.rpartition(".")[0] or "model", []).append(value)
    if not zero:
        return {layer: global_norm(each) for layer, each in layers.items()}
    wide = {torch.float64}
    return {
        layer: torch.zeros(
            (),
            dtype=torch.float64 if wide & {x.dtype for x in each} else torch.float32,
            device=tree.leaves(each)[0].device,
        )
        for layer, each in layers.items()
    }
