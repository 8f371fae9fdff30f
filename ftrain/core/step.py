"""The training step: `gradients`, then `update`, then `commit`.

    result = gradients(state, batch)                  # forward, backward, unscale, finite check
    proposed = update(optimizer, state, result)       # clip, moments, schedule, new parameters
    state, metrics = commit(state, proposed, result)  # the old state if gradients were not finite

`make_steps` composes these three and adds nothing; research code writes its own step from them.

Read next: `commit.py`, where a step is skipped, and `compile`, which turns a step into one graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ftrain.core import random, tree
from ftrain.core._checks import checked, isolated
from ftrain.core._loss import LossFn
from ftrain.core._mean_loss import GradReduce
from ftrain.core._new_memory import copied
from ftrain.core._not_copied import NotCopied
from ftrain.core._skip_nonfinite import gated
from ftrain.core._torch_levels import is_batched
from ftrain.core._torch_tensors import BatchNorm, InstanceNorm
from ftrain.core._words import a_or_an
from ftrain.core.commit import check_order, committed
from ftrain.core.evaluate import evaluation
from ftrain.core.functional import Bound, bind
from ftrain.core.gradients import GradientFn, GradientResult, NonFinite, gradients
from ftrain.core.metrics import Metrics
from ftrain.core.norm import shared_norm
from ftrain.core.optimizer import Optimizer, apply_updates
from ftrain.core.precision import Policy, Precision
from ftrain.core.random._watch import Watch
from ftrain.core.state import TrainState

__all__ = ["Composition", "Steps", "TrainStep", "make_steps", "update"]


class Steps(NamedTuple):
    """Functions that create a run's state, train it for one step, and evaluate it on one batch.

    Attributes:
        init_state: `(seed) -> state`; `seed` is an int.
        train_step: `(state, batch) -> (state, metrics)`.
        eval_step: `(state, batch) -> metrics`.
    """

    init_state: Callable[[int], TrainState]
    train_step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    eval_step: Callable[[TrainState, Any], Metrics]


@dataclass(frozen=True, eq=False)
class Composition:
    """Function `(state, batch) -> (state, metrics)` that runs gradients, then update, then commit."""

    gradients: GradientFn
    optimizer: Optimizer

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        """Return the state after this batch, and the metrics of the step."""
        result = self.gradients(state, batch)
        closures = self.gradients.closures(*gated((state, batch), result.finite))
        with shared_norm():  # clipping needs the norm that the finite check has computed
            proposed = update(self.optimizer, state, result, **closures)
        return committed(state, proposed, result, is_temporary=True)


@dataclass(frozen=True, eq=False)
class TrainStep(NotCopied):
    """Function `(state, batch) -> (state, metrics)` that composes `gradients`, `update` and `commit`.

    Attributes:
        fn: the composition. `dataclasses.replace(train_step, fn=...)` makes a step from another one.
        gradients: the first part of the step, the function that computes the gradients.
        accumulate: the number of micro-batches into which a batch is split.
        model: the model as a function of its tensors.
        policy: the precision.
        batch_statistics: the paths of the modules that compute statistics over all rows of a batch,
            which rows that only pad a batch would change.
    """

    __name__ = "train_step"

    fn: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    gradients: GradientFn
    accumulate: int
    model: Bound
    policy: Policy
    batch_statistics: tuple[str, ...]
    _watch: Watch = field(repr=False)

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        """Return the state after this batch, and the metrics of the step."""
        with checked(state):
            return self._watch(lambda: self.fn(state, batch), state.step.device)

    def with_gradients(self, gradients: GradientFn, accumulate: int) -> TrainStep:
        """Return the same step with another function that computes the gradients.

        Args:
            gradients: the new function that computes the gradients.
            accumulate: the number of micro-batches into which that function splits a batch.

        Raises:
            ValueError: the step is not the one of `make_steps`: a transformation has replaced `fn`.
        """
        if not isinstance(self.fn, Composition):
            raise ValueError(
                "train_step: expected the step of make_steps, whose gradients can be replaced, got one "
                "that a transformation has wrapped. Replace the gradients first, then apply the "
                "transformation."
            )
        fn = Composition(gradients, self.fn.optimizer)
        return replace(self, fn=fn, gradients=gradients, accumulate=accumulate)


def make_steps(
    model: nn.Module | Callable[[], nn.Module] | Bound,
    loss_fn: LossFn,
    optimizer: Optimizer,
    *,
    eval_fn: LossFn | None = None,
    precision: Precision | Policy = "32-true",
    accumulate: int = 1,
    nonfinite: NonFinite = "skip",
    grad_reduce: GradReduce | None = None,
) -> Steps:
    """Return the pure functions of a training run: `init_state`, `train_step` and `eval_step`.

    Args:
        model: an `nn.Module` (its weights are the start; it is never modified), or a function that
            builds one (then `init_state` is a pure function of its seed, initialisers included).
        loss_fn: `loss_fn(model, batch) -> loss` or `(loss, metrics)`; `model` is the module with the
            state's tensors in place. `loss` is a 0-d tensor, or `Mean(total, weight)` where
            micro-batches or ranks have different weights. `metrics` is a dict, nested or not, of 0-d
            tensors, numbers, metrics, and tensors with one entry for each example. With a parameter
            `key`, `loss_fn(model, batch, key)`, it gets a key of its own for `ftrain.random`; with a
            parameter `extras`, it reads `state.extras` (a teacher, an average), of which no gradient
            is taken.
        optimizer: a pair `init(params)`, `update(grads, opt_state, params)`, such as `optim.adamw`.
        eval_fn: like `loss_fn`, for `eval_step`; default: `loss_fn`.
        precision: `"32-true"`, `"bf16-mixed"`, `"16-mixed"`, `"bf16-true"`, or a `Policy`.
        accumulate: the number of micro-batches into which each batch is split, along the first axis.
        nonfinite: the treatment of a non-finite gradient or a total loss weight of 0. `"skip"`: only
            scaler and key change, and `metrics["skipped"]` is 1. `"raise"`: an error that names the
            parameter; waits for the device at every step. `"ignore"`: no check.
        grad_reduce: `(totals, weight) -> (totals, weight)`, for data parallelism.

    Returns:
        `Steps(init_state, train_step, eval_step)`. Metrics of a training step: `loss`, `grad_norm`
        (before clipping), `skipped`, `loss_scale` and `learning_rate` if they exist, and those of the
        loss function.

    Raises:
        ValueError: an option is out of its range; the model is lazy.
        TypeError: `model` does not build a module; a loss is a string, or a loss of torch.

    >>> from ftrain import optim
    >>> def loss_fn(model, batch):
    ...     return (model(batch["x"]) - batch["y"]).square().mean()
    >>> init_state, train_step, eval_step = make_steps(
    ...     lambda: nn.Linear(3, 1), loss_fn, optim.sgd(0.1)
    ... )
    >>> state = init_state(seed=0)
    >>> batch = {"x": torch.ones(4, 3), "y": torch.zeros(4, 1)}
    >>> new_state, metrics = train_step(state, batch)
    >>> sorted(metrics)
    ['grad_norm', 'learning_rate', 'loss', 'skipped']
    >>> bool(eval_step(new_state, batch)["loss"] < metrics["loss"])
    True
    """
    if not callable(getattr(optimizer, "init", None)):
        # The repr of a torch optimizer has one line per option.
        in_place = isinstance(optimizer, torch.optim.Optimizer)
        got = a_or_an(type(optimizer).__name__) if in_place else repr(optimizer)
        raise TypeError(
            f"optimizer: expected a pair of functions init and update, such as optim.adamw(1e-3), got "
            f"{got}. {_optimizer_remedy(optimizer)}"
        )
    bound = bind(model)
    policy = Policy.named(precision)
    gradients_of = gradients(
        bound,
        loss_fn,
        precision=policy,
        accumulate=accumulate,
        nonfinite=nonfinite,
        grad_reduce=grad_reduce,
    )

    def init_state(seed: int) -> TrainState:
        return initial_state(bound, optimizer, seed, policy)

    init_state.__qualname__ = "init_state"  # the name in Python's message about a missing seed

    train_step = TrainStep(
        Composition(gradients_of, optimizer),
        gradients_of,
        int(accumulate),
        bound,
        policy,
        batch_statistics(bound),
        Watch(loss_fn, bound.skeleton.module, optimizer, grad_reduce),
    )
    eval_fn = loss_fn if eval_fn is None else eval_fn
    return Steps(init_state, train_step, evaluation(bound, eval_fn, precision=policy))


def batch_statistics(bound: Bound) -> tuple[str, ...]:
    """Return the paths of the modules that compute statistics over a batch in training."""
    root = bound.skeleton.module
    return tuple(
        name or type(module).__name__
        for name, module in root.named_modules()
        if (module.training or not root.training)
        and (
            isinstance(module, BatchNorm)
            or (isinstance(module, InstanceNorm) and module.track_running_stats)
        )
    )


def _optimizer_remedy(optimizer: Any) -> str:
    kind = optimizer if isinstance(optimizer, type) else type(optimizer)
    if issubclass(kind, torch.optim.Optimizer):
        return (
            "A torch.optim optimizer changes parameters in place: write ftrain.optim.adam(1e-3) or "
            f"the like, or ftrain.optim.from_torch(torch.optim.{kind.__name__}, lr=...)."
        )
    name = getattr(optimizer, "__name__", None)
    if name is not None and str(getattr(optimizer, "__module__", "")).startswith("ftrain.optim."):
        return f"{name} was not called: write {name}(1e-3)."
    return "Pass one of ftrain.optim, or a pair of functions of your own."


def initial_state(bound: Bound, optimizer: Optimizer, seed: int, policy: Policy) -> TrainState:
    """Return the state before the first step, a pure function of the seed (and of a given module)."""
    with isolated("cpu"):
        init_key, run_key = random.split(random.key(seed)).unbind()
        params, buffers = policy.cast(bound.init(init_key))
    device = next((t.device for t in (*params.values(), *buffers.values())), torch.device("cpu"))
    with isolated(device.type):
        state = TrainState(
            step=torch.zeros((), dtype=torch.int64, device=device),
            params=params,
            buffers=buffers,
            # Copied, because an average may start as `params` itself, and leaves must not share memory.
            opt_state=copied(lambda: Watch()(lambda: optimizer.init(params), device)),
            scaler=policy.loss_scale.init_state(device) if policy.loss_scale else (),
            rng=run_key.clone().to(device),
            extras={},
        )
        return _with_rows(state, init_key.to(device)) if is_batched(init_key) else state


def _with_rows(state: TrainState, key: torch.Tensor) -> TrainState:
    """Make every leaf of a state depend on a key that `torch.vmap` maps over, with unchanged values.

    Without this, vmap stores a leaf that depends on no seed, such as a count, once for all rows. The
    state after the first step has the leaf once per row, with other strides, and the step is compiled
    again.
    """
    always = key[0] == key[0]
    return tree.map(lambda x: torch.where(always, x, x), state)  # type: ignore[no-any-return]


def update(
    optimizer: Optimizer, state: TrainState, result: GradientResult, **extra: Any
) -> TrainState:
    """Return the proposed state: new parameters, optimizer state and step count.

    Args:
        optimizer: the optimizer, whose `update` also receives the loss and its weight:
            `update(grads, opt_state, params, loss=..., weight=...)`.
        state: the state that the gradients were taken at.
        result: the gradients of a batch, as `gradients` returned them.
        **extra: passed to the optimizer's `update`; line searches, sharpness-aware and second-order
            methods need `gradients.closures(state, batch)`.

    Raises:
        TypeError: an argument has the wrong type; the order is `(optimizer, state, result)`.
    """
    check_order("update", optimizer=optimizer, state=state, result=result)
    with isolated(state.step.device.type):
        opt_state, params = gated((state.opt_state, state.params), result.finite)
        weight = result.metrics.entries["loss"].weight
        extra = {"loss": result.metrics["loss"], "weight": weight, **extra}
        updates, new_opt_state = Watch(optimizer)(
            lambda: optimizer.update(result.grads, opt_state, params, **extra),
            state.step.device,
        )
        return state.replace(
            step=state.step + 1,
            params=apply_updates(params, updates),
            opt_state=new_opt_state,
        )
