"""Schedule-Free: averaging instead of a learning rate schedule, without a fixed run length.

There are three points: `z` takes the steps, `x` is their average and is evaluated, and gradients
are taken between them, at `y = (1 - b1) z + b1 x`. The parameters that a training step holds are
`y`; the state holds `z`; `schedule_free_eval_params` gives `x`. As `x` is computed from `y`,
bfloat16 parameters round the average at every step (an error of about 5 % of the norm after 50 steps):
keep the parameters in float32, with precision "bf16-mixed".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core._words import a_or_an
from ftrain.core.optimizer import like
from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, debias, each_leaf
from ftrain.optim._leaves import (
    compute_dtype,
    first_device,
    matching_leaves,
    parameters,
    safe_sqrt,
    scalars_by_device,
    zeros_like,
)
from ftrain.optim._rate import LearningRate, check_learning_rate, double, rate_at, zero_count
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = [
    "ScheduleFreeState",
    "schedule_free_adamw",
    "schedule_free_eval_params",
    "schedule_free_sgd",
]


class ScheduleFreeState(NamedTuple):
    """State of `schedule_free_sgd` and `schedule_free_adamw`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        max_learning_rate: float64, 0-d. The largest rate so far.
        weight_sum: float64, 0-d. The sum of the weights of the averaged points.
        b1: float64, 0-d. The weight of the average in the point at which gradients are taken.
        z: the point that takes the steps, a tree like the parameters; at least float32.
        nu: running mean of the squared gradients, a tree like `z`; `()` for SGD.
    """

    count: Count
    learning_rate: torch.Tensor
    max_learning_rate: torch.Tensor
    weight_sum: torch.Tensor
    b1: torch.Tensor
    z: PyTree
    nu: PyTree


@algorithm
def schedule_free_adamw(
    learning_rate: LearningRate = 0.0025,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    *,
    weight_decay: Hyperparameter = 0.0,
    weight_lr_power: float = 2.0,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return Schedule-Free AdamW.

    $$z' = z - \eta \left( \frac{g}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda y \right), \quad
    v = \beta_2 v + (1 - \beta_2) g^2$$

    $$x' = (1 - c) x + c z', \quad y' = (1 - \beta_1) z' + \beta_1 x', \quad
    c = \frac{w_t}{\sum_{i \le t} w_i}$$

    where $w_t$ is the largest rate so far to the power `weight_lr_power`.

    The update is that of `y`, the parameters. Evaluate with `schedule_free_eval_params`.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0). A warmup
            helps; a decay is not needed.
        b1: in (0, 1). It has the role of momentum; use larger values for longer runs (0.95, 0.98).
        b2: decay of the mean of squares, in [0, 1).
        eps: >= 0, added to the square root of the bias-corrected `v`.
        weight_decay: >= 0, multiplied by the learning rate; applied at `y`.
        weight_lr_power: the exponent of the rate in the weights; larger values give the warmup less
            weight.
        mask: a tree of bools, a function of the parameters, or None for all. Default: `optim.matrices`,
            no decay on vectors and scalars; `optim.everything` decays all, as optax does.

    Returns:
        A transformation with a `ScheduleFreeState`. `update` needs `params`.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> from ftrain import optim
        >>> optimizer = schedule_free_adamw(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> state = optimizer.init(params)
        >>> for _ in range(100):
        ...     updates, state = optimizer.update(params, state, params)
        ...     params = optim.apply_updates(params, updates)
        >>> bool(schedule_free_eval_params(state, params)["w"].abs().max() < 0.5)
        True

    References:
        Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky (2024), [The Road Less
        Scheduled](https://arxiv.org/abs/2405.15682).
    """
    _checks.fraction("b2", b2)
    _checks.non_negative("eps", eps)
    return _schedule_free(
        "schedule_free_adamw", learning_rate, b1, (b2, eps), weight_decay, weight_lr_power, mask
    )


@algorithm
def schedule_free_sgd(
    learning_rate: LearningRate = 1.0,
    b1: Hyperparameter = 0.9,
    *,
    weight_decay: Hyperparameter = 0.0,
    weight_lr_power: float = 2.0,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return Schedule-Free gradient descent.

    $$z' = z - \eta (g + \lambda y), \quad x' = (1 - c) x + c z', \quad
    y' = (1 - \beta_1) z' + \beta_1 x', \quad c = \frac{w_t}{\sum_{i \le t} w_i}$$

    where $w_t$ is the largest rate so far to the power `weight_lr_power`.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: in (0, 1). It has the role of momentum.
        weight_decay: >= 0, an L2 penalty at `y`.
        weight_lr_power: the exponent of the rate in the weights; larger values give the warmup less
            weight.
        mask: a tree of bools, a function of the parameters, or None for all. Default: `optim.matrices`.

    Returns:
        A transformation with a `ScheduleFreeState`. `update` needs `params`.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = schedule_free_sgd(0.5)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> updates, state.z
        ({'w': tensor([-0.5000])}, {'w': tensor([0.5000])})

    References:
        Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky (2024), [The Road Less
        Scheduled](https://arxiv.org/abs/2405.15682).
    """
    return _schedule_free(
        "schedule_free_sgd", learning_rate, b1, None, weight_decay, weight_lr_power, mask
    )


def schedule_free_eval_params(state: PyTree, params: PyTree) -> PyTree:
    r"""Return the averaged parameters $x = z + (y - z) / \beta_1$, for evaluation and as the result.

    A pure function: training continues from `params` unchanged.

    Args:
        state: a `ScheduleFreeState`, or the state of a chain or wrapper that holds exactly one.
        params: the parameters `y` that this state belongs to.

    Returns:
        A tree like `params`, of the same dtypes.

    Raises:
        ValueError: there is no `ScheduleFreeState` in the state, or several; `params` are of another
            structure or shape.

    Example:
        >>> from ftrain import optim
        >>> optimizer = optim.chain(optim.clip_by_global_norm(1.0), schedule_free_sgd(0.5))
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = optimizer.init(params)
        >>> schedule_free_eval_params(state, params)
        {'w': tensor([1.])}
    """
    found = _states(state)
    if len(found) != 1:
        holder = a_or_an(type(state).__name__)
        raise ValueError(
            f"state: expected one state of a schedule-free optimizer, got {len(found)} in {holder}. "
            "Pass the optimizer's state, `state.opt_state` of a `TrainState`."
        )
    own = found[0]
    (zs, ys), treedef = matching_leaves(("state.z", own.z), ("params", params), strict_dtype=False)
    place = scalars_by_device(own.b1)
    out = []
    for z, y in zip(zs, ys, strict=True):
        (b1,) = place(z.device, z.dtype)
        out.append(like(z + (y.to(z.dtype) - z) / b1, y))
    return tree.unflatten(treedef, out)


def _states(state: PyTree) -> list[ScheduleFreeState]:
    if isinstance(state, ScheduleFreeState):
        return [state]
    if isinstance(state, dict):
        state = tuple(state.values())
    if isinstance(state, (tuple, list)):
        return [found for part in state for found in _states(part)]
    return []


def _schedule_free(
    name: str,
    learning_rate: LearningRate,
    b1: Hyperparameter,
    adam: tuple[Hyperparameter, Hyperparameter] | None,
    weight_decay: Hyperparameter,
    weight_lr_power: float,
    mask: Mask,
) -> GradientTransformation:
    """Return Schedule-Free AdamW if `adam` is `(b2, eps)`, Schedule-Free SGD if it is `None`."""
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.positive("b1", b1)
    _checks.non_negative("weight_decay", weight_decay)
    _checks.non_negative("weight_lr_power", weight_lr_power)
    decays = isinstance(weight_decay, torch.Tensor) or weight_decay > 0

    def init(params: PyTree) -> ScheduleFreeState:
        leaves, treedef = parameters(params)
        mask_leaves(mask, params)
        device = first_device(leaves)
        count = zero_count(device)
        copies = [p.to(compute_dtype(p.dtype), copy=True) for p in leaves]
        return ScheduleFreeState(
            count,
            rate_at(learning_rate, count).float(),
            double(0.0, device),
            double(0.0, device),
            double(b1, device).clone(),
            tree.unflatten(treedef, copies),
            zeros_like(params) if adam else (),
        )

    def update(
        grads: PyTree, state: ScheduleFreeState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ScheduleFreeState]:
        rate = rate_at(learning_rate, state.count)
        # Where both are equal, its derivative is that of `rate`; `torch.maximum` has half of each.
        largest = rate.clamp_min(state.max_learning_rate)
        weight = largest**weight_lr_power
        weight_sum = state.weight_sum + weight
        # The sum of the weights is 0 while the rate is 0, as at the start of a warmup.
        share = torch.where(weight_sum > 0, weight / weight_sum, 0.0)
        # This is y' - y with x = z + (y - z) / b1 inserted, which cancels the division by b1.
        along = 1 - state.b1 * (1 - share)
        matching_leaves(("params", params), ("grads", grads))
        directions, nu = (grads, state.nu) if adam is None else _scaled(grads, state, *adam)
        updates, z = each_leaf(
            rule,
            directions,
            params,
            {"z": state.z},
            mask=mask_leaves(mask, params),
            rate=rate,
            shrink_by=rate * weight_decay,
            along=along,
            share=share,
        )
        new = ScheduleFreeState(
            state.count + 1,
            rate.float(),
            largest,
            weight_sum,
            state.b1.clone(),
            z,
            nu,
        )
        return updates, new

    def rule(
        leaf: Leaf,
        rate: Hyperparameter,
        shrink_by: Hyperparameter,
        along: Hyperparameter,
        share: Hyperparameter,
    ) -> tuple[torch.Tensor, ...]:
        (z,), y = leaf.memory, leaf.param.to(leaf.grad.dtype)
        move = leaf.grad * -rate
        if decays and leaf.masked:
            move = move - y * shrink_by
        return move * along + (z - y) * share, z + move

    return checked(
        name, ScheduleFreeState, init, update, needs_params=True, unused=() if adam else ("nu",)
    )


def _scaled(
    grads: PyTree, state: ScheduleFreeState, b2: Hyperparameter, eps: Hyperparameter
) -> tuple[PyTree, PyTree]:
    """Return the gradients over the root of their second moment, and the new second moment."""
    directions, nu = each_leaf(
        _direction,
        grads,
        None,
        {"nu": state.nu},
        b2=b2,
        one_b2=1 - b2,
        correction=debias(b2, state.count + 1).sqrt(),
        eps=eps,
    )
    return directions, nu


def _direction(
    leaf: Leaf,
    b2: Hyperparameter,
    one_b2: Hyperparameter,
    correction: Hyperparameter,
    eps: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (v,) = leaf.grad, leaf.memory
    v = torch.addcmul(v * b2, g * one_b2, g)
    return g / (safe_sqrt(v) / correction + eps), v
