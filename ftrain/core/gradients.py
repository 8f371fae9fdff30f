"""First part of a step: the gradients of a batch, as one pure function of the state.

Read next: `step.py`, where `gradients`, `update` and `commit` make a training step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from ftrain.core import random, tree
from ftrain.core._checks import check_batch, check_state, isolated, without_autocast
from ftrain.core._loss import LossFn, WatchedLoss
from ftrain.core._loss_notes import refuse_torch_loss
from ftrain.core._mean_loss import GradReduce, MeanLoss
from ftrain.core._not_copied import NotCopied
from ftrain.core._raise_nonfinite import require_finite
from ftrain.core._skip_nonfinite import Gate
from ftrain.core._words import brief
from ftrain.core.functional import Bound, bind
from ftrain.core.metrics import Last, Mean, Metrics, Sum
from ftrain.core.norm import finite_norm
from ftrain.core.precision import LossScale, LossScaleState, Policy, Precision
from ftrain.core.random._watch import Watch
from ftrain.core.ranks import BuildRanks
from ftrain.core.state import TrainState, amount

__all__ = ["GradientFn", "GradientResult", "LossFn", "NonFinite", "gradients"]

NonFinite = Literal["skip", "raise", "ignore"]


class GradientResult(NamedTuple):
    """Gradients and by-products of one batch.

    Attributes:
        grads: `{name: tensor}` like `params`: unscaled, averaged over micro-batches, reduced.
        finite: bool, 0-d: every gradient is finite and the total loss weight is positive; `None` for
            `nonfinite="ignore"`.
        buffers: the buffers after the forward pass.
        scaler: the loss scaler after this step.
        rng: the key for the next step.
        metrics: `loss`, `grad_norm`, `skipped`, `loss_scale` with dynamic loss scaling, and the user's
            own.
    """

    grads: Any
    finite: torch.Tensor | None
    buffers: Any
    scaler: Any
    rng: torch.Tensor
    metrics: Metrics

    def __repr__(self) -> str:
        """Describe tensors by their sizes; only the values of `finite` and of the metrics are read."""
        if not all(isinstance(x, torch.Tensor) for x in tree.leaves(tuple(self))):
            return f"{type(self).__name__}{tuple(self)!r}"
        finite = None if self.finite is None else brief(self.finite)
        parts = [f"grads={amount(self.grads)}", f"finite={finite}"]
        parts += [f"buffers={amount(self.buffers)}", f"metrics={self.metrics!r}"]
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True)
class GradientFn(NotCopied):
    """Function `(state, batch) -> GradientResult`, with `closures` for optimizers that call the loss."""

    _result: Callable[[TrainState, Any], GradientResult]
    _closures: Callable[[TrainState, Any], dict[str, Callable[[Any], Any]]]
    _watch: Watch
    _over: Callable[[BuildRanks, Bound | None], GradientFn]

    def __call__(self, state: TrainState, batch: Any) -> GradientResult:
        """Return the gradients and by-products of this batch."""
        check_state(state)
        return self._watch(lambda: self._result(state, batch), state.step.device)

    def viewing(self, view: Callable[[TrainState], TrainState]) -> GradientFn:
        """Return a function that computes the gradients with `view(state)` in place of the state.

        Use it for a loss that reads extras which are computed from the state.

        Args:
            view: a pure function that returns a state with the same parameters.

        Example:
            >>> from torch import nn
            >>> def loss_fn(model, batch, extras):
            ...     return (model(batch) - extras["level"]).square().mean()
            >>> def view(state):
            ...     return state.replace(extras={"level": 1 / (1 + state.step)})
            >>> apply = bind(nn.Linear(2, 1))
            >>> params, buffers = apply.init(random.key(0))
            >>> state = TrainState(torch.tensor(0), params, buffers, (), (), random.key(1), {})
            >>> result = gradients(apply, loss_fn).viewing(view)(state, torch.ones(4, 2))
        """
        return GradientFn(
            lambda state, batch: self._result(view(state), batch),
            lambda state, batch: self._closures(view(state), batch),
            self._watch,
            lambda build, bound: self._over(build, bound).viewing(view),
        )

    def over(self, build: BuildRanks, bound: Bound | None = None) -> GradientFn:
        """Return the function that computes the gradients of a batch that several ranks share.

        `ftrain.distributed.data_parallel` calls it.

        Args:
            build: returns the ranks that share a batch.
            bound: the model as a function of this rank's part of the parameters; default: of all.

        Raises:
            ValueError: the gradients are reduced already; the loss compares the rows of a batch.
        """
        return self._over(build, bound)

    def closures(self, state: TrainState, batch: Any) -> dict[str, Callable[[Any], Any]]:
        """Return functions of the parameters that compute this batch's loss and gradients.

        Line searches and second-order optimizers need them. Key, buffers and micro-batches are those of
        the gradients, so that at `state.params` both functions return the values of
        `self(state, batch)`. Pass the functions as extra arguments:
        `update(optimizer, state, result, **gradients.closures(state, batch))`.

        Returns:
            `value_fn(params) -> loss`, 0-d and differentiable, and
            `grad_fn(params) -> grads`, like `GradientResult.grads`: unscaled, averaged, reduced.
        """
        closures, device = self._closures(state, batch), state.step.device

        def watched(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
            return lambda params: self._watch(lambda: fn(params), device)

        return {name: watched(fn) for name, fn in closures.items()}


def gradients(
    model: nn.Module | Callable[[], nn.Module] | Bound,
    loss_fn: LossFn,
    *,
    precision: Precision | Policy = "32-true",
    accumulate: int = 1,
    nonfinite: NonFinite = "skip",
    grad_reduce: GradReduce | None = None,
) -> GradientFn:
    """Return the function `(state, batch) -> GradientResult` that begins a training step.

    Args:
        model: a module, a function that builds one, or a `bind`-ed model.
        loss_fn: `loss_fn(model, batch) -> loss` or `(loss, metrics)`. `loss` is a 0-d tensor or
            `Mean(total, weight)`; `metrics` a dict, nested or not, of 0-d tensors, numbers, metrics,
            and tensors with one entry for each example (`PerExample`, concatenated over
            micro-batches). With a parameter `key`, `loss_fn(model, batch, key)`, it gets a key of its
            own; with a parameter `extras`, it reads `state.extras`, of which no gradient is taken.
        precision: a name or a `Policy`.
        accumulate: the number of micro-batches into which a batch is split, along the first axis.
        nonfinite: `"skip"`, `"raise"` (waits for the device at every step) or `"ignore"`.
        grad_reduce: `(totals, weight) -> (totals, weight)` on the weighted sum of the gradients and
            its weight, before the one division: sum both over ranks for data parallelism.

    Raises:
        ValueError: an option is out of range; the model has no trainable parameters.
        TypeError: a parameter is complex; the loss is a string, or a loss of torch.

    >>> from torch import nn
    >>> def loss_fn(model, batch):
    ...     return model(batch).square().mean()
    >>> apply = bind(nn.Linear(2, 1))
    >>> params, buffers = apply.init(random.key(0))
    >>> state = TrainState(torch.tensor(0), params, buffers, (), (), random.key(1), {})
    >>> result = gradients(apply, loss_fn)(state, torch.ones(4, 2))
    >>> sorted(result.grads), result.metrics["loss"].shape
    (['bias', 'weight'], torch.Size([]))
    """
    refuse_torch_loss("loss_fn", loss_fn)
    bound = bind(model)
    loss_fn = WatchedLoss(loss_fn)
    policy = Policy.named(precision)
    _check_options(accumulate, nonfinite, policy.loss_scale)
    _check_parameters(bound)
    return _gradients(
        MeanLoss(bound, loss_fn, policy, int(accumulate), grad_reduce),
        nonfinite,
        Watch(loss_fn, bound.skeleton.module, grad_reduce),
    )


def _gradients(mean_loss: MeanLoss, nonfinite: NonFinite, watch: Watch) -> GradientFn:
    """Return the function that computes the gradients of a mean loss."""
    policy = mean_loss.policy
    scaling = policy.loss_scale

    def gradients_of(state: TrainState, batch: Any) -> GradientResult:
        check_batch(batch, state.step.device)
        if scaling is not None and not isinstance(state.scaler, LossScaleState):
            device = "" if state.step.device.type == "cpu" else repr(str(state.step.device))
            raise ValueError(
                "state.scaler: expected a LossScaleState, since this precision scales the loss, got "
                "no scaler: the state was made with another precision. Write "
                f"state.replace(scaler=ftrain.LossScale().init_state({device}))."
            )
        with isolated(state.step.device.type):
            gate = Gate()
            if nonfinite == "skip":
                state, batch = gate((state, batch))
            keys = random.split(state.rng)
            rng, key = keys[0].clone(), keys[1]
            grads, weight, buffers, merged = mean_loss.gradients(state, key, policy.cast(batch))
            norm, finite = finite_norm(grads, keep=True)
            metrics = dict(merged.entries)
            good = finite & (weight > 0)
            if nonfinite == "raise":
                good = _require_good(grads, weight, metrics["loss"].value, state.step)
            gate.passes = good
            zero = torch.zeros_like(norm)
            metrics["grad_norm"] = Mean(torch.where(good, norm, zero), good.to(norm.dtype))
            applied = good if nonfinite != "ignore" else torch.ones_like(good)
            metrics["skipped"] = Sum(torch.logical_not(applied).to(torch.int64))
            scaler = state.scaler
            if scaling is not None:
                metrics["loss_scale"] = Last(state.scaler.scale.clone())
                scaler = scaling.update(state.scaler, finite)
        finite_or_none = None if nonfinite == "ignore" else good
        return GradientResult(grads, finite_or_none, buffers, scaler, rng, Metrics(metrics))

    def closures_of(state: TrainState, batch: Any) -> dict[str, Callable[[Any], Any]]:
        def at(params: Any) -> tuple[TrainState, torch.Tensor, Any]:
            return state.replace(params=params), random.split(state.rng)[1], policy.cast(batch)

        def grad_fn(params: Any) -> Any:
            with isolated(state.step.device.type):
                return mean_loss.gradients(*at(params)).totals

        def value_fn(params: Any) -> torch.Tensor:
            with without_autocast(state.step.device.type):
                return mean_loss.value(*at(params))

        return {"value_fn": value_fn, "grad_fn": grad_fn}

    def over(build: BuildRanks, bound: Bound | None) -> GradientFn:
        return _gradients(mean_loss.over(build, bound), nonfinite, watch)

    return GradientFn(gradients_of, closures_of, watch, over)


def _require_good(
    grads: Any, weight: torch.Tensor, loss: torch.Tensor, step: torch.Tensor
) -> torch.Tensor:
    finite = torch.stack([torch.isfinite(g).all() for g in tree.leaves(grads)])
    names = json.dumps([f"params{path}" for path in tree.paths(grads)])
    checked: torch.Tensor = require_finite(finite, weight, loss, step, names)
    return checked


def _check_parameters(bound: Bound) -> None:
    dtypes = bound.dtypes()
    if not dtypes:
        raise ValueError(
            f"{bound} has nothing to train: expected a parameter with requires_grad=True, got none. "
            "Call requires_grad_() on the parameters to train."
        )
    for name, dtype in dtypes.items():
        if dtype.is_complex:
            raise TypeError(
                f"the parameter {name!r}: expected a real dtype, got {dtype}. Register its real and "
                "imaginary parts, torch.view_as_real(x), and compute with torch.view_as_complex(self.x)."
            )


def _check_options(accumulate: Any, nonfinite: Any, scaling: LossScale | None) -> None:
    if not isinstance(accumulate, (int, np.integer)) or accumulate < 1:
        raise ValueError(
            f"accumulate: expected a whole number of at least 1, got {accumulate!r}. Write accumulate=1."
        )
    if nonfinite not in ("skip", "raise", "ignore"):
        raise ValueError(
            f"nonfinite: expected 'skip', 'raise' or 'ignore', got {nonfinite!r}. Write 'skip'."
        )
    if scaling is not None and nonfinite != "skip":
        raise ValueError(
            "nonfinite: expected 'skip' with dynamic loss scaling, which adapts its scale by skipping "
            f"steps that overflow, got {nonfinite!r}. Use nonfinite='skip', or precision='bf16-mixed'."
        )
