"""Evaluation: metrics of a batch, or the model's outputs for it, without changing the state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ftrain.core import random, tree
from ftrain.core._checks import check_batch, check_state, isolated
from ftrain.core._kept_graph import keeps_graph
from ftrain.core._loss import LossFn, WatchedLoss, call_loss, split_loss
from ftrain.core._loss_notes import refuse_torch_loss
from ftrain.core.functional import Bound, bind, describe
from ftrain.core.metrics import Metrics
from ftrain.core.precision import Policy, Precision
from ftrain.core.random._watch import Watch
from ftrain.core.state import TrainState

__all__ = ["EvalStep", "evaluation", "prediction"]


@dataclass(frozen=True, eq=False)
class EvalStep:
    """Function `(state, batch) -> Metrics` that calls a function with the model in eval mode.

    Attributes:
        fn: the function.
        with_model: returns the same evaluation of another model.
    """

    __name__ = "eval_step"

    fn: Callable[[TrainState, Any], Metrics]
    with_model: Callable[[Bound], EvalStep]

    def __call__(self, state: TrainState, batch: Any) -> Metrics:
        """Return the metrics of this batch; the state does not change."""
        return self.fn(state, batch)


def evaluation(
    model: nn.Module | Callable[[], nn.Module] | Bound,
    eval_fn: LossFn,
    *,
    precision: Precision | Policy = "32-true",
) -> EvalStep:
    """Return the function `(state, batch) -> Metrics` that calls `eval_fn` with the model in eval mode.

    The same state and batch give the same metrics, even if dropout was left on.
    """
    refuse_torch_loss("eval_fn", eval_fn)
    bound = bind(model)
    watched = WatchedLoss(eval_fn)
    policy = Policy.named(precision)
    where = describe(watched)

    watch = Watch(watched, bound.skeleton.module)

    def eval_step(state: TrainState, batch: Any) -> Metrics:
        device = _device(state, batch)
        with isolated(device.type):
            out = watch(lambda: _called(bound, watched, policy, where, state, batch), device)
            return split_loss(out, where)[1]

    return EvalStep(eval_step, lambda bound: evaluation(bound, eval_fn, precision=policy))


def prediction(
    model: nn.Module | Callable[[], nn.Module] | Bound,
    *,
    precision: Precision | Policy = "32-true",
) -> Callable[[TrainState, Any], Any]:
    """Return the function `(state, inputs) -> outputs` that calls the model in eval mode.

    >>> predict = prediction(nn.Linear(3, 2))
    >>> params, buffers = bind(nn.Linear(3, 2)).init(random.key(0))
    >>> state = TrainState(torch.tensor(0), params, buffers, (), (), random.key(0), {})
    >>> predict(state, torch.ones(4, 3)).shape
    torch.Size([4, 2])
    """
    bound = bind(model)
    policy = Policy.named(precision)
    outputs = WatchedLoss(_outputs)
    where = f"`{type(bound.skeleton.module).__name__}`"

    watch = Watch(bound.skeleton.module)

    def predict(state: TrainState, inputs: Any) -> Any:
        device = _device(state, inputs)
        with isolated(device.type):
            out = watch(lambda: _called(bound, outputs, policy, where, state, inputs), device)
            # Outputs are copied, because a model may return its input or a parameter.
            return tree.map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, out)

    return predict


def _outputs(module: nn.Module, inputs: Any) -> Any:
    return module(inputs)


def _device(state: TrainState, batch: Any) -> torch.device:
    """Check state and batch; return their device."""
    check_state(state)
    check_batch(batch, state.step.device)
    return state.step.device


def _called(
    bound: Bound, fn: WatchedLoss, policy: Policy, where: str, state: TrainState, batch: Any
) -> Any:
    """Call `fn(module, batch)` in eval mode and the policy's precision; draws come from the state's key.

    Grad mode is enabled for models that compute derivatives (forces of an energy, residuals of a
    differential equation). Unless the caller keeps the graph, no tensor of the state or the batch
    requires a gradient, so that autograd records nothing else.
    """
    # Values are cast because averages of the parameters are float32 in every precision.
    extras = state.extras if fn.takes_extras else {}
    values = policy.cast((state.params, state.buffers, extras, batch))
    params, buffers, extras, batch = values if keeps_graph() else _detached(values)
    with random.keyed(state.rng, bound.skeleton.module), torch.enable_grad():
        out, _ = bound.call(
            lambda module: call_loss(
                fn, module, batch, extras, policy, state.step.device.type, where
            ),
            params,
            buffers,
            False,
        )
        return out


def _detached(values: Any) -> Any:
    """Detach the tensors of a tree; return the tree itself if no tensor requires a gradient."""
    if not any(isinstance(x, torch.Tensor) and x.requires_grad for x in tree.leaves(values)):
        return values
    return tree.map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, values)
