"""The first piece of a step: the gradients of a batch, as one pure function of the state.

Read next: `step.py`, where `gradients`, `update` and `commit` make a training step.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ftrain.core import random, tree
from ftrain.core._checks import check_batch, check_state, isolated, without_autocast
from ftrain.core._loss import LossFn, WatchedLoss, call_loss, split_loss
from ftrain.core._nonfinite import require_finite
from ftrain.core._pull_back import pull_back, strangers_of
from ftrain.core._words import kind
from ftrain.core.accumulate import (
    Accumulated,
    Micro,
    MicroBatches,
    accumulate_micro_batches,
    each_part,
    parts_of,
    safe_weight,
    wide,
)
from ftrain.core.compile._trace import unrecorded
from ftrain.core.functional import Bound, bind, describe
from ftrain.core.metrics import Last, Mean, Metrics, Sum, Unweighted
from ftrain.core.norm import finite_norm
from ftrain.core.precision import LossScale, LossScaleState, Policy, Precision
from ftrain.core.random._watch import Watch
from ftrain.core.state import TrainState

__all__ = ["GradientFn", "GradientResult", "LossFn", "NonFinite", "gradients"]

GradReduce = Callable[[Any, torch.Tensor], tuple[Any, torch.Tensor]]
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


@dataclass(frozen=True)
class GradientFn:
    """The function `(state, batch) -> GradientResult`, with `closures` for optimizers that need them."""

    _result: Callable[[TrainState, Any], GradientResult]
    _closures: Callable[[TrainState, Any], dict[str, Callable[[Any], Any]]]
    _watch: Watch

    def __call__(self, state: TrainState, batch: Any) -> GradientResult:
        """Return the gradients and by-products of this batch."""
        check_state(state)
        return self._watch(lambda: self._result(state, batch), state.step.device)

    def closures(self, state: TrainState, batch: Any) -> dict[str, Callable[[Any], Any]]:
        """Return the loss of this batch as functions of the parameters, for line searches and the like.

        Key, buffers and micro-batches are those of the gradients, so that at `state.params` both
        functions return the values of `self(state, batch)`. Pass them as extra arguments:
        `update(optimizer, state, result, **gradients.closures(state, batch))`.

        Returns:
            `value_fn(params) -> loss`, 0-d, to be differentiated as its caller likes, and
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
            own.
        precision: a name or a `Policy`.
        accumulate: the number of micro-batches into which a batch is split, along the first axis.
        nonfinite: `"skip"`, `"raise"` (waits for the device at every step) or `"ignore"`.
        grad_reduce: `(totals, weight) -> (totals, weight)` on the weighted sum of the gradients and
            its weight, before the one division: sum both over ranks for data parallelism.

    Raises:
        ValueError: an option is out of range; the model has no trainable parameters.
        TypeError: a parameter is complex.

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
    bound = bind(model)
    loss_fn = WatchedLoss(loss_fn)
    policy = Policy.named(precision)
    scaling = policy.loss_scale
    _check_options(accumulate, nonfinite, scaling)
    _check_parameters(bound)
    one = _forward_backward(bound, loss_fn, policy)

    def all_parts(state: TrainState, key: torch.Tensor, batch: Any) -> Accumulated:
        scale = state.scaler.scale if scaling else None

        def micro(buffers: Any, key: torch.Tensor, part: Any) -> Micro:
            return one(state.params, scale, buffers, key, part)

        if accumulate != 1 or isinstance(batch, MicroBatches):
            parts = parts_of(batch, accumulate)
            result = accumulate_micro_batches(micro, state.params, state.buffers, key, parts)
        else:
            grads, weight, buffers, metrics = micro(state.buffers, key, batch)
            if grad_reduce is None:
                return Accumulated(grads, None, buffers, metrics)
            share = safe_weight(weight)
            totals = tree.map(lambda g: g.to(wide(g.dtype)) * share, grads)
            result = Accumulated(totals, weight, buffers, metrics)
        if grad_reduce is not None:
            assert result.weight is not None
            totals, weight = grad_reduce(result.totals, result.weight)
            result = result._replace(totals=totals, weight=weight)
        return result

    def gradients_of(state: TrainState, batch: Any) -> GradientResult:
        check_batch(batch, state.step.device)
        if scaling is not None and not isinstance(state.scaler, LossScaleState):
            raise ValueError(
                "this precision scales the loss, and the state has no scaler: it was made with another "
                "precision. Give it one: state.replace(scaler=ftrain.LossScale().init_state())."
            )
        with isolated(state.step.device.type):
            keys = random.split(state.rng)
            rng, key = keys[0].clone(), keys[1]
            result = all_parts(state, key, policy.cast(batch))
            grads = _averaged(result, state, scaling)
            norm, finite = finite_norm(grads)
            metrics = dict(result.metrics.entries)
            weight = metrics["loss"].weight if result.weight is None else result.weight
            good = finite & (weight > 0)
            if nonfinite == "raise":
                good = _require_good(grads, weight, metrics["loss"].value, state.step)
            zero = torch.zeros_like(norm)
            metrics["grad_norm"] = Mean(torch.where(good, norm, zero), good.to(norm.dtype))
            applied = good if nonfinite != "ignore" else torch.ones_like(good)
            metrics["skipped"] = Sum(torch.logical_not(applied).to(torch.int64))
            scaler = state.scaler
            if scaling is not None:
                metrics["loss_scale"] = Last(state.scaler.scale.clone())
                scaler = scaling.update(state.scaler, finite)
        return GradientResult(
            grads,
            None if nonfinite == "ignore" else good,
            result.buffers,
            scaler,
            rng,
            Metrics(metrics),
        )

    value = _loss_of(bound, loss_fn, policy, accumulate, grad_reduce)
    watch = Watch(loss_fn, bound.skeleton.module, grad_reduce)
    return GradientFn(gradients_of, _closures(all_parts, value, policy), watch)


def _closures(
    all_parts: Callable[..., Accumulated], value: Callable[..., torch.Tensor], policy: Policy
) -> Callable[[TrainState, Any], dict[str, Callable[[Any], Any]]]:
    def closures_of(state: TrainState, batch: Any) -> dict[str, Callable[[Any], Any]]:
        def grad_fn(params: Any) -> Any:
            with isolated(state.step.device.type):
                at = state.replace(params=params)
                result = all_parts(at, random.split(state.rng)[1], policy.cast(batch))
                return _averaged(result, at, policy.loss_scale)

        def value_fn(params: Any) -> torch.Tensor:
            with without_autocast(state.step.device.type):
                return value(params, state.buffers, random.split(state.rng)[1], policy.cast(batch))

        return {"value_fn": value_fn, "grad_fn": grad_fn}

    return closures_of


def _loss_of(
    bound: Bound, loss_fn: LossFn, policy: Policy, accumulate: int, grad_reduce: GradReduce | None
) -> Callable[..., torch.Tensor]:
    """Return the mean loss of a batch, `(params, buffers, key, batch) -> loss`: forward pass alone."""
    forward = _forward(bound, loss_fn, policy)

    def total_and_weight(
        params: Any, buffers: Any, key: torch.Tensor, part: Any, share: float = 1.0
    ) -> tuple[Any, Any, Any]:
        with random.keyed(key, bound.skeleton.module):
            total, metrics, after = forward(params, buffers, key, part)
        counted = metrics.entries["loss"]
        if type(counted) is Unweighted and share != 1.0:
            return total.to(counted.weight.dtype) * share, counted.weight * share, after
        return total.to(counted.weight.dtype), counted.weight, after

    def value(params: Any, buffers: Any, key: torch.Tensor, batch: Any) -> torch.Tensor:
        if accumulate == 1 and not isinstance(batch, MicroBatches):
            total, weight, _ = total_and_weight(params, buffers, key, batch)
        else:
            total, weight = torch.zeros((), device=key.device), torch.zeros((), device=key.device)
            for part_key, part, each in each_part(batch, accumulate, key):
                part_total, part_weight, buffers = total_and_weight(
                    params, buffers, part_key, part, each
                )
                total, weight = total + part_total, weight + part_weight
        if grad_reduce is not None:
            total, weight = grad_reduce(total, weight)
        mean: torch.Tensor = total / safe_weight(weight)
        return mean

    return value


def _forward_backward(bound: Bound, loss_fn: LossFn, policy: Policy) -> Callable[..., Micro]:
    """Return the function of one micro-batch, `(params, scale, buffers, key, part) -> Micro`."""
    where, forward = describe(loss_fn), _forward(bound, loss_fn, policy)
    seen = False  # the loss was searched for parameters outside of the state

    def micro(params: Any, scale: Any, buffers: Any, key: torch.Tensor, part: Any) -> Micro:
        nonlocal seen

        def run(until: contextlib.ExitStack, params: Any) -> tuple[torch.Tensor, Any]:
            total, metrics, after = forward(params, buffers, key, part, until)
            return total, (after, metrics)

        def seed(aux: Any) -> torch.Tensor:
            counted = aux[1].entries["loss"]
            cotangent = safe_weight(counted.weight).reciprocal()
            if scale is not None:
                cotangent = cotangent * scale
            return cotangent.to(counted.total.dtype)

        strangers: list[torch.Tensor] | None = None if seen else []
        until = contextlib.ExitStack()
        try:
            # Both around the backward pass too: a forward that runs again there finds weights and key.
            with random.keyed(key, bound.skeleton.module), until:
                _, (after, metrics), grads = pull_back(
                    functools.partial(run, until),
                    params,
                    seed=seed,
                    strangers=strangers,
                    name=where,
                )
        finally:
            if strangers:
                until = contextlib.ExitStack()
                with unrecorded(), random.keyed(key, bound.skeleton.module), until:
                    again = strangers_of(functools.partial(run, until), params)
                _refuse_strangers(strangers, again, where)
        seen = True
        return Micro(grads, metrics.entries["loss"].weight, after, metrics)

    return micro


def _forward(
    bound: Bound, loss_fn: LossFn, policy: Policy
) -> Callable[..., tuple[torch.Tensor, Metrics, Any]]:
    """Return the forward pass, `(params, buffers, key, part, until) -> (total, metrics, buffers)`."""
    where = describe(loss_fn)

    def forward(
        params: Any,
        buffers: Any,
        key: torch.Tensor,
        part: Any,
        until: contextlib.ExitStack | None = None,
    ) -> tuple[torch.Tensor, Metrics, Any]:
        out, after = bound.call(
            lambda module: call_loss(loss_fn, module, part, policy, key.device.type, where, until),
            params,
            buffers,
            True,
            until,
        )
        total, metrics = split_loss(out, where)
        return total, metrics, after

    return forward


def _refuse_strangers(first: list[torch.Tensor], second: list[torch.Tensor], where: str) -> None:
    """Raise if two runs of a loss depend on one leaf: a leaf that the loss makes is new in each."""
    made = {id(leaf) for leaf in first}
    for leaf in second:
        if id(leaf) in made:
            raise ValueError(
                f"{where} reads a tensor that requires a gradient and is not in the state "
                f"({kind(leaf)}): it would never be "
                "trained. Use the `model` argument, not the module itself, and no closure over it; what "
                "shall stay as it is (a teacher) needs requires_grad_(False)."
            )


def _averaged(result: Accumulated, state: TrainState, scaling: LossScale | None) -> Any:
    """Return the gradients of the mean loss, unscaled, in the parameters' dtypes."""
    inverse = None if scaling is None else LossScale.inverse(state.scaler)

    def average(total: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
        grad = total
        if result.weight is not None:
            grad = grad / safe_weight(result.weight)
        if inverse is not None:
            grad = grad * inverse
        return grad if grad.dtype == param.dtype else grad.to(param.dtype)

    return tree.map(average, result.totals, state.params)


def _require_good(
    grads: Any, weight: torch.Tensor, loss: torch.Tensor, step: torch.Tensor
) -> torch.Tensor:
    finite = torch.stack([torch.isfinite(g).all() for g in tree.leaves(grads)])
    names = "\n".join(f"params{path}" for path in tree.paths(grads))
    checked: torch.Tensor = require_finite(finite, weight, loss, step, names)
    return checked


def _check_parameters(bound: Bound) -> None:
    if not bound.skeleton.trainable:
        raise ValueError(f"{bound} has no parameter with requires_grad: there is nothing to train")
    for name in bound.skeleton.trainable:
        dtype = bound.skeleton.module.get_parameter(name).dtype
        if dtype.is_complex:
            raise TypeError(
                f"the parameter {name!r} is {dtype}, and steps train real ones. Register its real and "
                "imaginary parts, torch.view_as_real(x), and compute with torch.view_as_complex(self.x)."
            )


def _check_options(accumulate: Any, nonfinite: Any, scaling: LossScale | None) -> None:
    if not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(f"accumulate must be a whole number of at least 1, got {accumulate!r}")
    if nonfinite not in ("skip", "raise", "ignore"):
        raise ValueError(f"nonfinite must be 'skip', 'raise' or 'ignore', got {nonfinite!r}")
    if scaling is not None and nonfinite != "skip":
        raise ValueError(
            f"nonfinite={nonfinite!r} cannot go with dynamic loss scaling, which finds its scale by "
            "skipping steps that overflow. Use nonfinite='skip', or precision='bf16-mixed'."
        )
