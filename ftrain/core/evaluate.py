"""Evaluation: metrics of a batch, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ftrain.core import random
from ftrain.core._checks import check_batch, check_state, isolated
from ftrain.core._loss import LossFn, call_loss, split_loss
from ftrain.core.functional import Bound, bind, describe
from ftrain.core.metrics import Metrics
from ftrain.core.precision import Policy, Precision
from ftrain.core.state import TrainState

__all__ = ["evaluation"]


def evaluation(
    model: nn.Module | Callable[[], nn.Module] | Bound,
    eval_fn: LossFn,
    *,
    precision: Precision | Policy = "32-true",
) -> Callable[[TrainState, Any], Metrics]:
    """The function `(state, batch) -> Metrics`: `eval_fn` with the model in eval mode.

    The same state and batch give the same metrics, dropout left on by hand included.
    """
    bound = bind(model)
    policy = Policy.named(precision)
    where = describe(eval_fn)

    def eval_step(state: TrainState, batch: Any) -> Metrics:
        check_state(state)
        check_batch(batch, state.step.device)
        with isolated(state.step.device.type), random.keyed(state.rng, bound.skeleton.module):
            cast = policy.cast(batch)
            out, _ = bound.call(
                lambda module: call_loss(
                    eval_fn, module, cast, policy, state.step.device.type, where
                ),
                state.params,
                state.buffers,
                False,
            )
            return split_loss(out, where)[1]

    return eval_step
