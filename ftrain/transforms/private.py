"""Differentially private training (DP-SGD): clipped gradients of each example, and keyed noise.

Read next: `per_sample.py`, the gradients of each example; `poisson_sample.py`, the batches that the
guarantee assumes; `accountant.py`, the guarantee.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ftrain.core import random, tree
from ftrain.core._checks import check_state, isolated
from ftrain.core._loss import LossFn
from ftrain.core.commit import commit
from ftrain.core.functional import bind
from ftrain.core.gradients import GradientResult
from ftrain.core.metrics import Mean, Metrics, PerExample, Sum
from ftrain.core.norm import finite_norm, row_norms
from ftrain.core.optimizer import Optimizer
from ftrain.core.precision import Policy, Precision
from ftrain.core.state import TrainState
from ftrain.core.step import Steps, make_steps, update
from ftrain.transforms.per_sample import Model, chunks, count_examples, per_sample_results

__all__ = ["private_gradients", "private_steps"]


def private_gradients(
    model: Model,
    loss_fn: LossFn,
    *,
    clip_norm: float,
    noise_multiplier: float,
    batch_size: float | None = None,
    precision: Precision | Policy = "32-true",
    chunk_size: int | None = None,
) -> Callable[[TrainState, Any], GradientResult]:
    r"""Return a function `(state, batch) -> GradientResult` that computes the gradient of DP-SGD.

    It takes the place of `ftrain.gradients`. The gradient is
    $\frac{1}{b} \left( \sum_i g_i \min(1, C / |g_i|) + \sigma C z \right)$ with the gradients $g_i$ of
    single examples, the clipping norm C, the noise multiplier $\sigma$ and standard normal z, drawn
    from the state's key. An example whose gradient is not finite adds 0, so that it cannot cause a
    skipped step.

    The guarantee of `dp_epsilon` holds for the parameters if each example enters a batch independently
    with equal probability (`poisson_sample`) and `batch_size` is fixed. For rows without an example, let
    the loss return `Mean(total, weight)` with weight 0. The metrics are not private. The draws come from
    a reproducible generator, not from a cryptographic one: keep the seed secret.

    Args:
        model: as of `make_steps`.
        loss_fn: as of `make_steps`; called with batches of one example.
        clip_norm: C, positive.
        noise_multiplier: sigma, 0 or more. 0 clips only: there is no privacy guarantee.
        batch_size: b, the expected number of examples; default: the rows of the batch.
        precision: as of `make_steps`, without loss scaling.
        chunk_size: examples at a time; default: all of them.

    Returns:
        A function whose result `ftrain.update` and `ftrain.commit` take. Metrics: `loss`; `grad_norm` of
        the noisy gradient; `clipped`, the fraction of examples whose gradient was clipped; `skipped`;
        `nonfinite_examples`; and the metrics of the loss function, each a mean, a sum or a value per
        example.

    Raises:
        ValueError: an option is out of range, or as of `per_sample_grads`.
        TypeError: in a call, the loss function returns a metric of another kind.

    References:
        Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang, "Deep learning with differential
        privacy", CCS 2016.

    Example:
        >>> from torch import nn
        >>> from ftrain import make_steps, optim
        >>> def loss_fn(model, batch):
        ...     return model(batch).square().mean()
        >>> state = make_steps(nn.Linear(2, 1), loss_fn, optim.sgd(0.1)).init_state(0)
        >>> grads_of = private_gradients(
        ...     nn.Linear(2, 1), loss_fn, clip_norm=1.0, noise_multiplier=0.0
        ... )
        >>> bool(grads_of(state, 100 * torch.ones(4, 2)).metrics["grad_norm"] <= 1 + 1e-6)
        True
    """
    _check_options(clip_norm, noise_multiplier, batch_size, Policy.named(precision))
    results = per_sample_results(model, loss_fn, precision=precision)

    def private(state: TrainState, batch: Any) -> GradientResult:
        check_state(state)
        with isolated(state.step.device.type):
            return private_result(state, batch)

    def private_result(state: TrainState, batch: Any) -> GradientResult:
        count = count_examples(batch)
        rng, examples_key, noise_key = random.split(state.rng, 3)
        found = [
            _clipped(results(state, batch, part, examples_key), clip_norm)
            for part in chunks(count, chunk_size)
        ]
        total, metrics, buffers = found[0]
        for more, others, _ in found[1:]:
            total, metrics = tree.map(torch.add, total, more), metrics.merge(others)
        divisor = float(count if batch_size is None else batch_size)
        grads = _noisy(total, noise_key, noise_multiplier * clip_norm, divisor, state.params)
        norm, finite = finite_norm(grads)
        entries = dict(metrics.entries)
        entries["grad_norm"] = Mean(
            torch.where(finite, norm, torch.zeros_like(norm)), finite.to(norm.dtype)
        )
        entries["skipped"] = Sum(torch.logical_not(finite).to(torch.int64))
        return GradientResult(grads, finite, buffers, state.scaler, rng.clone(), Metrics(entries))

    return private


def private_steps(
    model: Model,
    loss_fn: LossFn,
    optimizer: Optimizer,
    *,
    clip_norm: float,
    noise_multiplier: float,
    batch_size: float | None = None,
    precision: Precision | Policy = "32-true",
    chunk_size: int | None = None,
    eval_fn: LossFn | None = None,
) -> Steps:
    """Return the pure functions of a training run with differential privacy (DP-SGD).

    They are the steps of `make_steps` with `private_gradients` in the place of `gradients`.

    Args:
        model: as of `make_steps`.
        loss_fn: as of `make_steps`; called with batches of one example.
        optimizer: as of `make_steps`; it receives noisy gradients only, and no loss function.
        clip_norm: the largest norm of the gradient of an example.
        noise_multiplier: the standard deviation of the noise, over `clip_norm`. 0 adds no noise: there
            is no privacy guarantee, however small the gradients are.
        batch_size: the expected number of examples; default: the rows of the batch.
        precision: as of `make_steps`, without loss scaling.
        chunk_size: examples at a time; default: all of them.
        eval_fn: as of `make_steps`.

    Returns:
        `Steps(init_state, train_step, eval_step)`.

    Raises:
        ValueError: as of `private_gradients`.

    Example:
        >>> from torch import nn
        >>> from ftrain import optim
        >>> def loss_fn(model, batch):
        ...     return model(batch).square().mean()
        >>> init_state, train_step, _ = private_steps(
        ...     nn.Linear(2, 1), loss_fn, optim.sgd(0.1), clip_norm=1.0, noise_multiplier=1.1
        ... )
        >>> state, metrics = train_step(init_state(0), torch.ones(4, 2))
        >>> sorted(metrics)
        ['clipped', 'grad_norm', 'learning_rate', 'loss', 'nonfinite_examples', 'skipped']
    """
    bound = bind(model)
    steps = make_steps(bound, loss_fn, optimizer, eval_fn=eval_fn, precision=precision)
    gradients_of = private_gradients(
        bound,
        loss_fn,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        batch_size=batch_size,
        precision=precision,
        chunk_size=chunk_size,
    )

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        result = gradients_of(state, batch)
        return commit(state, update(optimizer, state, result), result)

    return steps._replace(train_step=dataclasses.replace(steps.train_step, fn=step))  # type: ignore[type-var]


def _clipped(result: GradientResult, clip_norm: float) -> tuple[Any, Metrics, Any]:
    """Return the sum of the clipped gradients of examples, the merged metrics, and the buffers."""
    # The result's finite flag would not do: it is False for weight 0 too, where the gradient is 0.
    norms, is_finite = row_norms(result.grads)
    # clip_norm / max(norm, clip_norm) is exactly 1 for a norm below clip_norm.
    scale = torch.where(is_finite, clip_norm / norms.clamp_min(clip_norm), 0.0)

    def summed(grad: Tensor) -> Tensor:
        shape = (-1, *[1] * (grad.ndim - 1))
        kept = torch.where(is_finite.view(shape), grad, torch.zeros_like(grad))
        return (kept * scale.view(shape)).sum(0)

    total = tree.map(lambda g: summed(g if g.dtype == torch.float64 else g.float()), result.grads)
    entries = {
        name: _merged(name, metric)
        for name, metric in result.metrics.entries.items()
        if name not in ("grad_norm", "skipped")
    }
    entries["clipped"] = Mean(
        (norms > clip_norm).to(norms.dtype).sum(), torch.ones_like(norms).sum()
    )
    entries["nonfinite_examples"] = Sum(torch.logical_not(is_finite).sum())
    return total, Metrics(entries), result.buffers


def _merged(name: str, metric: Any) -> Any:
    """Merge a metric whose first axis counts examples into one metric of the whole batch."""
    if isinstance(metric, Mean):
        kept = torch.where(metric.weight > 0, metric.total, torch.zeros_like(metric.total))
        return Mean(kept.sum(0), metric.weight.sum(0))
    if isinstance(metric, Sum):
        return Sum(metric.total.sum(0))
    if isinstance(metric, PerExample):
        return PerExample(metric.values.flatten(0, 1))
    raise TypeError(
        f"metrics[{name!r}]: expected a mean, a sum or values of each example, got "
        f"{type(metric).__name__}, which cannot be merged over examples here. Compute it in eval_fn."
    )


def _noisy(total: Any, key: Tensor, deviation: float, divisor: float, params: Any) -> Any:
    """Return `(total + deviation z) / divisor`, `z` standard normal, in the parameters' dtypes."""
    leaves, treedef = tree.flatten(total)
    noisy = [
        (leaf + deviation * random.normal(key, leaf.shape, leaf.dtype, folds=(i,))) / divisor
        for i, leaf in enumerate(leaves)
    ]
    return tree.map(lambda g, p: g.to(p.dtype), tree.unflatten(treedef, noisy), params)


def _check_options(
    clip_norm: float, noise_multiplier: float, batch_size: float | None, policy: Policy
) -> None:
    if not 0 < clip_norm < float("inf"):
        raise ValueError(f"clip_norm: expected a positive number, got {clip_norm!r}. Write 1.0.")
    if not 0 <= noise_multiplier < float("inf"):
        raise ValueError(
            f"noise_multiplier: expected a number of at least 0, got {noise_multiplier!r}. Write 1.1."
        )
    if batch_size is not None and not batch_size > 0:
        raise ValueError(
            f"batch_size: expected a positive number, got {batch_size!r}. Pass the expected number of "
            "examples in a batch."
        )
    if policy.loss_scale is not None:
        raise ValueError(
            "precision: expected a precision without loss scaling, because a skipped step would "
            "reveal that a gradient overflowed, got dynamic loss scaling. Write precision='bf16-mixed'."
        )
