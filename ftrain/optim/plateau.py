"""Reduction of the step size once the loss has stopped decreasing."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch

from ftrain.core import tree
from ftrain.core._words import a_or_an
from ftrain.optim import _checks
from ftrain.optim._checked import checked
from ftrain.optim._leaves import first_device, gradients, parameters
from ftrain.optim._rate import double, zero_count
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree
from ftrain.optim.scale import scaled

__all__ = ["ReduceOnPlateauState", "reduce_on_plateau"]

_Mode = Literal["min", "max"]
_ThresholdMode = Literal["rel", "abs"]


class ReduceOnPlateauState(NamedTuple):
    """State of `reduce_on_plateau`.

    Attributes:
        count: int64, 0-d. Updates so far.
        scale: float64, 0-d. The current factor of the updates.
        best: float64, 0-d. The best value so far; initially infinite.
        total: float64, 0-d. The sum of the values since the last comparison.
        bad_count: int64, 0-d. Consecutive comparisons without improvement.
        cooldown_count: int64, 0-d. Remaining comparisons in which a lack of improvement is ignored.
    """

    count: Count
    scale: torch.Tensor
    best: torch.Tensor
    total: torch.Tensor
    bad_count: torch.Tensor
    cooldown_count: torch.Tensor


def reduce_on_plateau(
    factor: Hyperparameter = 0.1,
    patience: int = 10,
    *,
    mode: _Mode = "min",
    threshold: Hyperparameter = 1e-4,
    threshold_mode: _ThresholdMode = "rel",
    cooldown: int = 0,
    min_scale: Hyperparameter = 0.0,
    accumulation_size: int = 1,
) -> GradientTransformation:
    r"""Multiply updates by a scale that shrinks whenever a value has stopped improving.

    $$u = s \, g, \qquad s = \max(\mathrm{factor} \cdot s, \mathrm{min\_scale})$$

    when more than `patience` consecutive comparisons show no improvement. Make it the last
    transformation of a chain, after the algorithm whose steps it shrinks; the `learning_rate` that the
    algorithm reports does not include this scale.

    The value is the argument `value=` of `update` or, without it, `loss=`, which a training step passes.
    The rule is that of `torch.optim.lr_scheduler.ReduceLROnPlateau`, whose `step` is one comparison (it
    ignores changes of the rate below 1e-8; this does not). `optax.contrib.reduce_on_plateau` shrinks one
    comparison earlier, at the `patience`-th one without improvement.

    Args:
        factor: in (0, 1).
        patience: the number of consecutive comparisons without improvement that leave the scale
            unchanged, >= 0.
        mode: `"min"`, lower values are better; `"max"`, higher ones are.
        threshold: the smallest change that counts as an improvement, >= 0 and, if relative, < 1.
        threshold_mode: `"rel"`, as a fraction of the best value; `"abs"`, in the units of the value.
        cooldown: the number of comparisons after a reduction in which a lack of improvement is ignored,
            >= 0.
        min_scale: the smallest scale, in [0, 1].
        accumulation_size: the number of values that are averaged for one comparison, >= 1: losses of
            single batches are too noisy to compare.

    Returns:
        A transformation with a `ReduceOnPlateauState`.

    Raises:
        ValueError: an option out of its range; `update` is given neither `value` nor `loss`.
        TypeError: the value is neither a number nor a 0-d tensor.

    Example:
        >>> from ftrain import optim
        >>> optimizer = optim.chain(optim.sgd(1.0), reduce_on_plateau(0.5, patience=1))
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = optimizer.init(params)
        >>> for loss in (1.0, 0.9, 0.9, 0.9, 0.9):
        ...     updates, state = optimizer.update(params, state, params, loss=torch.tensor(loss))
        ...     print(updates["w"].item(), end=" ")
        -1.0 -1.0 -1.0 -0.5 -0.5
    """
    _checks.fraction("factor", factor)
    _checks.positive("factor", factor)
    _checks.positive_int("patience", patience, at_least=0)
    _checks.positive_int("cooldown", cooldown, at_least=0)
    _checks.positive_int("accumulation_size", accumulation_size)
    _checks.non_negative("min_scale", min_scale)
    if not isinstance(min_scale, torch.Tensor) and min_scale > 1:
        raise ValueError(
            f"min_scale: expected a number in [0, 1], got {min_scale!r}. Write min_scale=0."
        )
    if mode not in get_args(_Mode):
        raise ValueError(f"mode: expected 'min' or 'max', got {mode!r}. Write mode='min'.")
    if threshold_mode not in get_args(_ThresholdMode):
        raise ValueError(
            f"threshold_mode: expected 'rel' or 'abs', got {threshold_mode!r}. Write "
            "threshold_mode='rel'."
        )
    (_checks.fraction if threshold_mode == "rel" else _checks.non_negative)("threshold", threshold)
    worst = math.inf if mode == "min" else -math.inf

    def init(params: PyTree) -> ReduceOnPlateauState:
        leaves, _ = parameters(params)
        device = first_device(leaves)
        return ReduceOnPlateauState(
            count=zero_count(device),
            scale=double(1.0, device),
            best=double(worst, device),
            total=double(0.0, device),
            bad_count=zero_count(device),
            cooldown_count=zero_count(device),
        )

    def is_better(value: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        margin = double(threshold, value.device)
        if threshold_mode == "rel":
            return value < best * (1 - margin) if mode == "min" else value > best * (1 + margin)
        return value < best - margin if mode == "min" else value > best + margin

    def compared(state: ReduceOnPlateauState) -> ReduceOnPlateauState:
        """Compare the mean of the accumulated values with the best mean so far; return the new state."""
        value = state.total / accumulation_size
        better = is_better(value, state.best)
        cooling = state.cooldown_count > 0
        bad = torch.where(better | cooling, 0, state.bad_count + 1)
        reduce = bad > patience
        smaller = torch.maximum(
            state.scale * double(factor, value.device), double(min_scale, value.device)
        )
        return ReduceOnPlateauState(
            count=state.count,
            scale=torch.where(reduce, smaller, state.scale),
            best=torch.where(better, value, state.best),
            total=torch.zeros_like(state.total),
            bad_count=torch.where(reduce, 0, bad),
            cooldown_count=torch.where(reduce, cooldown, state.cooldown_count - cooling.long()),
        )

    def update(
        grads: PyTree, state: ReduceOnPlateauState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ReduceOnPlateauState]:
        leaves, treedef = gradients(grads)
        count = state.count + 1
        summed = state._replace(count=count, total=state.total + _value(extra, count.device))
        due = count % accumulation_size == 0
        new = ReduceOnPlateauState(
            *(
                torch.where(due, one, other)
                for one, other in zip(compared(summed), summed, strict=True)
            )
        )
        return tree.unflatten(treedef, scaled(leaves, new.scale)), new

    return checked("reduce_on_plateau", ReduceOnPlateauState, init, update)


def _value(extra: dict[str, Any], device: torch.device) -> torch.Tensor:
    name = "value" if extra.get("value") is not None else "loss"
    value = extra.get(name)
    if value is None:
        raise ValueError(
            "`reduce_on_plateau`: expected the loss, got None. Call `update(grads, state, params, "
            "loss=loss)`, as a training step does, or pass another value by `value=`."
        )
    if isinstance(value, torch.Tensor) and not value.ndim:
        return double(value.detach(), device)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return double(value, device)
    kind = a_or_an(type(value).__name__)
    shown = f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
    raise TypeError(
        f"`reduce_on_plateau`: expected one number as `{name}`, got {kind} {shown}. "
        "Pass a 0-d tensor, such as `loss.mean()`."
    )
