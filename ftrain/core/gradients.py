"""The first piece of a step: what a batch says, as one pure function of the state.

Read next: `step.py`, where `gradients`, `update` and `commit` make a training step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ftrain.core import random, tree
from ftrain.core._nonfinite import require_finite
from ftrain.core._skeleton import unchanged
from ftrain.core.accumulate import (
    Accumulated,
    Micro,
    MicroBatches,
    accumulate_micro_batches,
    parts_of,
    safe_weight,
)
from ftrain.core.functional import Bound, bind, describe, pull_back
from ftrain.core.metrics import Last, Mean, Metrics, Sum, as_metrics
from ftrain.core.norm import global_norm
from ftrain.core.precision import LossScale, Policy, Precision
from ftrain.core.state import TrainState

__all__ = ["Gradients", "LossFn", "NonFinite", "gradients"]

LossFn = Callable[[Any, Any], Any]  # (model, batch) -> loss | (loss, metrics)
GradReduce = Callable[[Any, torch.Tensor], tuple[Any, torch.Tensor]]
NonFinite = Literal["skip", "raise", "ignore"]

_RESERVED = ("loss", "grad_norm", "skipped", "loss_scale", "learning_rate")
_CAPTURED_REMEDY = (
    "A step must be a function of its state and batch: hand the tensor over in the batch, register it "
    "as a buffer, or carry it in state.extras"
)
_BATCH_REMEDY = "Compute with a changed copy instead: x = x + 1, not x += 1"


class Gradients(NamedTuple):
    """What a batch says about a state.

    Attributes:
        grads: `{name: tensor}` like `params`: unscaled, averaged over micro-batches, reduced.
        finite: bool, 0-d: every gradient is finite; `None` where non-finite ones are ignored.
        buffers: the buffers after the forward pass.
        scaler: the loss scaler after this step.
        rng: the key for the next step.
        metrics: `loss`, `grad_norm`, `skipped`, `loss_scale` where there is one, and the user's own.
    """

    grads: Any
    finite: torch.Tensor | None
    buffers: Any
    scaler: Any
    rng: torch.Tensor
    metrics: Metrics


def gradients(
    model: nn.Module | Callable[[], nn.Module] | Bound,
    loss_fn: LossFn,
    *,
    precision: Precision | Policy = "32-true",
    accumulate: int = 1,
    nonfinite: NonFinite = "skip",
    grad_reduce: GradReduce | None = None,
) -> Callable[[TrainState, Any], Gradients]:
    """The function `(state, batch) -> Gradients` that a training step begins with.

    Args:
        model: a module, a function that builds one, or a `bind`-ed model.
        loss_fn: `loss_fn(model, batch) -> loss` or `(loss, metrics)`. `loss` is a 0-d tensor or
            `Mean(total, weight)`; `metrics` a dict of 0-d tensors, numbers, or metrics.
        precision: a name or a `Policy`.
        accumulate: how many micro-batches a batch is cut into, along the first axis.
        nonfinite: `"skip"`, `"raise"` (waits for the device at every step) or `"ignore"`.
        grad_reduce: `(totals, weight) -> (totals, weight)` on the weighted sum of the gradients and
            its weight, before the one division: sum both over ranks for data parallelism.

    Raises:
        ValueError: an option is out of its range.

    >>> from torch import nn
    >>> def loss_fn(model, batch):
    ...     return model(batch).square().mean()
    >>> apply = bind(nn.Linear(2, 1))
    >>> params, buffers = apply.init(random.key(0))
    >>> state = TrainState(torch.tensor(0), params, buffers, (), (), random.key(1), {})
    >>> found = gradients(apply, loss_fn)(state, torch.ones(4, 2))
    >>> sorted(found.grads), found.metrics["loss"].shape
    (['bias', 'weight'], torch.Size([]))
    """
    bound = bind(model)
    policy = Policy.named(precision)
    scaling = policy.loss_scale
    _check_options(accumulate, nonfinite, scaling)
    where = describe(loss_fn)

    def one(params: Any, scale: Any, buffers: Any, key: torch.Tensor, part: Any) -> Micro:
        def run(params: Any) -> tuple[torch.Tensor, Any]:
            out, after = bound.call(
                lambda module: _call(loss_fn, module, part, policy, where), params, buffers, True
            )
            total, metrics = split_loss(out, where)
            return total, (after, metrics)

        def seed(aux: Any) -> torch.Tensor:
            counted = aux[1].entries["loss"]
            cotangent = safe_weight(counted.weight).reciprocal()
            if scale is not None:
                cotangent = cotangent * scale
            return cotangent.to(counted.total.dtype)

        # Around the backward pass too: what is recomputed there must not draw from elsewhere.
        with random.keyed(key):
            _, (after, metrics), grads = pull_back(run, params, seed=seed, name=where)
        return Micro(grads, metrics.entries["loss"].weight, after, metrics)

    def all_parts(state: TrainState, scale: Any, key: torch.Tensor, batch: Any) -> Accumulated:
        def micro(buffers: Any, key: torch.Tensor, part: Any) -> Micro:
            return one(state.params, scale, buffers, key, part)

        if accumulate != 1 or isinstance(batch, MicroBatches):
            parts, k = parts_of(batch, accumulate)
            found = accumulate_micro_batches(micro, state.params, state.buffers, key, parts, k)
        else:
            grads, weight, buffers, metrics = micro(state.buffers, key, batch)
            if grad_reduce is None:
                return Accumulated(grads, None, buffers, metrics)
            share = safe_weight(weight)
            totals = tree.map(lambda g: g * share, grads)
            found = Accumulated(totals, weight, buffers, metrics)
        if grad_reduce is not None:
            totals, weight = grad_reduce(found.totals, found.weight)
            found = found._replace(totals=totals, weight=weight)
        return found

    def gradients_of(state: TrainState, batch: Any) -> Gradients:
        check_state(state)
        check_batch(batch, state.step.device)
        with isolated(state.step.device.type):
            keys = random.split(state.rng)
            rng, key = keys[0].clone(), keys[1]
            scale = state.scaler.scale if scaling else None
            found = all_parts(state, scale, key, policy.cast(batch))
            grads = _averaged(found, state, scaling)
            norm = global_norm(grads)
            finite = torch.isfinite(norm)
            metrics = dict(found.metrics.entries)
            if nonfinite == "raise":
                finite = _require_finite(grads, metrics["loss"].value, state.step)
            zero = torch.zeros_like(norm)
            metrics["grad_norm"] = Mean(torch.where(finite, norm, zero), finite.to(norm.dtype))
            applied = finite if nonfinite != "ignore" else torch.ones_like(finite)
            metrics["skipped"] = Sum(torch.logical_not(applied).to(torch.int64))
            scaler = state.scaler
            if scaling is not None:
                metrics["loss_scale"] = Last(state.scaler.scale.clone())
                scaler = scaling.update(state.scaler, finite)
        return Gradients(
            grads,
            None if nonfinite == "ignore" else finite,
            found.buffers,
            scaler,
            rng,
            Metrics(metrics),
        )

    return gradients_of


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
        with isolated(state.step.device.type), random.keyed(state.rng):
            cast = policy.cast(batch)
            out, _ = bound.call(
                lambda module: _call(eval_fn, module, cast, policy, where),
                state.params,
                state.buffers,
                False,
            )
            return split_loss(out, where)[1]

    return eval_step


def split_loss(out: Any, where: str) -> tuple[torch.Tensor, Metrics]:
    """What a loss function returned, as the total to differentiate and all metrics, detached.

    The total's weight is that of `metrics.entries["loss"]`.

    Raises:
        TypeError: it is neither a loss nor a pair of loss and metrics.
        ValueError: a metric has a name that the step itself reports.
    """
    loss, extra = (out, {}) if not _is_pair(out) else out
    if isinstance(loss, Mean):
        total, weight = loss.total, loss.weight
        for part, value in (("total", total), ("weight", weight)):
            if not isinstance(value, torch.Tensor) or value.ndim:
                raise TypeError(
                    f"{where} returned Mean with {part} {_brief(value)}; both must be 0-d tensors: "
                    "Mean((loss * mask).sum(), mask.sum())"
                )
    else:
        total = loss
        if not isinstance(total, torch.Tensor) or total.ndim:
            raise TypeError(
                f"{where} must return a scalar (0-d) loss, `Mean(total, weight)`, or a pair "
                f"`(loss, metrics)`; found {_brief(total)}. Reduce it: loss.mean()."
            )
        weight = torch.ones_like(total)
    metrics = as_metrics(extra, where)
    taken = sorted(set(metrics) & set(_RESERVED))
    if taken:
        raise ValueError(f"{where} returned metrics named {taken}, which the step reports itself")
    counted = Mean(total.detach().clone(), weight.detach().to(torch.float32))
    return total, Metrics({"loss": counted, **metrics.entries})


@contextlib.contextmanager
def isolated(device_type: str) -> Iterator[None]:
    """None of the caller's modes inside: no autocast, no grad, no inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        if not torch.is_autocast_enabled(device_type):
            yield
            return
        with torch.autocast(device_type, enabled=False):
            yield


def check_state(state: Any) -> None:
    """Raise unless `state` is a `TrainState`."""
    if not isinstance(state, TrainState):
        raise TypeError(
            f"a step takes an ftrain.TrainState, found {type(state).__name__}. Make one with "
            "init_state(seed), and pass on the new one: state, metrics = train_step(state, batch)."
        )


def check_batch(batch: Any, device: torch.device) -> None:
    """Raise unless the batch's tensors are where the state is (0-d ones may stay on the host)."""
    for path, leaf in zip(tree.paths(batch), tree.leaves(batch), strict=True):
        if isinstance(leaf, torch.Tensor):
            if leaf.device != device and not (leaf.ndim == 0 and leaf.device.type == "cpu"):
                raise ValueError(
                    f"batch{path} is on {leaf.device}, the state on {device}. Move the batch first: "
                    f"ftrain.tree.map(lambda x: x.to({str(device)!r}), batch)."
                )
        elif hasattr(leaf, "__array__"):
            raise TypeError(
                f"batch{path} is a {type(leaf).__name__}, not a tensor. Convert it where the batch is "
                "made: torch.from_numpy(x)."
            )


def _averaged(found: Accumulated, state: TrainState, scaling: LossScale | None) -> Any:
    """Gradients of the mean loss, unscaled, in the parameters' dtypes and strides."""
    inverse = None if scaling is None else LossScale.inverse(state.scaler)

    def average(total: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
        grad = total
        if found.weight is not None:
            grad = grad / safe_weight(found.weight)
        if inverse is not None:
            grad = grad * inverse
        return grad.to(param.dtype)

    return tree.map(average, found.totals, state.params)


def _require_finite(grads: Any, loss: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    finite = torch.stack([torch.isfinite(g).all() for g in tree.leaves(grads)])
    names = "\n".join(f"params{path}" for path in tree.paths(grads))
    return require_finite(finite, loss, step, names)


def _call(loss_fn: LossFn, module: nn.Module, batch: Any, policy: Policy, where: str) -> Any:
    tensors = {
        f"batch{path}": leaf
        for path, leaf in zip(tree.paths(batch), tree.leaves(batch), strict=True)
        if isinstance(leaf, torch.Tensor)
    }
    device_type = next((t.device.type for t in tensors.values()), "cpu")
    with (
        unchanged(tensors, "input", _BATCH_REMEDY),
        unchanged(_captured(loss_fn), "captured tensor", _CAPTURED_REMEDY),
        policy.inside_loss(device_type),
    ):
        try:
            return loss_fn(module, batch)
        except Exception as error:
            shapes = ", ".join(f"{name}: {_brief(t)}" for name, t in tensors.items())
            error.add_note(f"while computing {where} on {shapes}")
            raise


def _captured(fn: Callable[..., Any]) -> dict[str, torch.Tensor]:
    """The tensors that a function holds in its closure."""
    code, cells = getattr(fn, "__code__", None), getattr(fn, "__closure__", None)
    if code is None or not cells:
        return {}
    contents = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        with contextlib.suppress(ValueError):  # a cell that is not filled yet
            contents[name] = cell.cell_contents
    return {name: x for name, x in contents.items() if isinstance(x, torch.Tensor)}


def _check_options(accumulate: Any, nonfinite: Any, scaling: LossScale | None) -> None:
    if not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(f"accumulate must be a whole number of at least 1, found {accumulate!r}")
    if nonfinite not in ("skip", "raise", "ignore"):
        raise ValueError(f"nonfinite must be 'skip', 'raise' or 'ignore', found {nonfinite!r}")
    if scaling is not None and nonfinite != "skip":
        raise ValueError(
            f"nonfinite={nonfinite!r} cannot go with dynamic loss scaling, which finds its scale by "
            "skipping steps that overflow. Use nonfinite='skip', or precision='bf16-mixed'."
        )


def _is_pair(out: Any) -> bool:
    return isinstance(out, tuple) and not isinstance(out, Mean) and len(out) == 2


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__
