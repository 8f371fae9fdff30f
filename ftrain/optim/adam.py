"""Adam: steps from running means of the gradients and of their squares.

`scale_by_adam` is the direction alone, for composition; `adam` and `adamw` are whole algorithms
whose state is flat: one count, one rate, two moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._adam_kernel import adam_kernel, may_compute
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, Place, debias, each_leaf
from ftrain.optim._leaves import first_device, parameters, safe_sqrt, zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at, zero_count
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["AdamState", "ScaleByAdamState", "adam", "adamw", "scale_by_adam"]


class ScaleByAdamState(NamedTuple):
    """State of `scale_by_adam`.

    Attributes:
        count: int64, 0-d. Updates so far.
        mu: running mean of the gradients, a tree like the parameters; at least float32.
        nu: running mean of the squared gradients; a tree like `mu`.
    """

    count: Count
    mu: PyTree
    nu: PyTree


class AdamState(NamedTuple):
    """State of `adam` and `adamw`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        mu: running mean of the gradients, a tree like the parameters; at least float32.
        nu: running mean of the squared gradients; a tree like `mu`.
    """

    count: Count
    learning_rate: torch.Tensor
    mu: PyTree
    nu: PyTree


@algorithm
def adamw(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    *,
    weight_decay: Hyperparameter = 0.01,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return AdamW: Adam with decoupled weight decay.

    $$u = -\eta \left( \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda p
    \right), \qquad m = \beta_1 m + (1 - \beta_1) g, \quad v = \beta_2 v + (1 - \beta_2) g^2$$

    with the decay $\lambda$ where the mask is True.

    `torch.optim.AdamW` shrinks the parameters before it adds the step, which rounds once more: in
    float32 the two differ by at most 2 ulp of the larger of parameter and step.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: >= 0, added to the square root of the bias-corrected `v`.
        weight_decay: >= 0, multiplied by the learning rate.
        mask: a tree of bools, a function of the parameters, or None for all. Default: `optim.matrices`,
            no decay on vectors and scalars; `optim.everything` decays all, as torch and optax do.

    Returns:
        A transformation with an `AdamState`. `update` needs `params`.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> from ftrain import optim
        >>> optimizer = adamw(optim.warmup_cosine(1e-3, 10, 100), weight_decay=0.1)
        >>> params = {"w": torch.ones(2, 2), "b": torch.zeros(2)}
        >>> state = optimizer.init(params)
        >>> grads = {"w": torch.ones(2, 2), "b": torch.ones(2)}
        >>> for _ in range(10):
        ...     updates, state = optimizer.update(grads, state, params)
        ...     params = optim.apply_updates(params, updates)
        >>> state.count, state.learning_rate
        (tensor(10), tensor(0.0009))

    References:
        Loshchilov, Hutter (2019), [Decoupled Weight Decay
        Regularization](https://arxiv.org/abs/1711.05101).
    """
    _checks.non_negative("weight_decay", weight_decay)
    check_learning_rate(learning_rate)
    _check_moments(b1, b2, eps)

    def init(params: PyTree) -> AdamState:
        parameters(params)
        mask_leaves(mask, params)
        return _init(learning_rate, params)

    def update(
        grads: PyTree, state: AdamState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AdamState]:
        decays = mask_leaves(mask, params)
        rate = rate_at(learning_rate, state.count)
        moments = ScaleByAdamState(state.count, state.mu, state.nu)
        updates, (count, mu, nu) = _advance(
            (b1, b2, eps),
            grads,
            moments,
            params,
            factor=-rate,
            shrink=rate * weight_decay,
            decays=decays,
        )
        return updates, AdamState(count, rate.float(), mu, nu)

    return checked("adamw", AdamState, init, update, needs_params=True)


@algorithm
def adam(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
) -> GradientTransformation:
    r"""Return Adam: adaptive moment estimation.

    $$u = -\eta \, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}, \qquad
    m = \beta_1 m + (1 - \beta_1) g, \quad v = \beta_2 v + (1 - \beta_2) g^2$$

    The order of the operations is that of `torch.optim.Adam(foreach=False)`: in eager float32 on the
    CPU, results are equal to the bit. `optax.adam` has the same `eps`, outside the root, and divides the
    moments instead of the step: it differs by rounding only.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: >= 0, added to the square root of the bias-corrected `v`.

    Returns:
        A transformation with an `AdamState`. For an L2 penalty write
        `chain(add_decayed_weights(...), adam(...))`; for decoupled decay, `adamw`.

    Raises:
        ValueError: a hyper-parameter is out of range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = adam(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> updates
        {'w': tensor([-0.1000,  0.1000])}

    References:
        Kingma, Ba (2015), [Adam: A Method for Stochastic
        Optimization](https://arxiv.org/abs/1412.6980).
    """
    check_learning_rate(learning_rate)
    _check_moments(b1, b2, eps)

    def init(params: PyTree) -> AdamState:
        return _init(learning_rate, params)

    def update(
        grads: PyTree, state: AdamState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AdamState]:
        rate = rate_at(learning_rate, state.count)
        moments = ScaleByAdamState(state.count, state.mu, state.nu)
        updates, (count, mu, nu) = _advance((b1, b2, eps), grads, moments, params, factor=-rate)
        return updates, AdamState(count, rate.float(), mu, nu)

    return checked("adam", AdamState, init, update)


def scale_by_adam(
    b1: Hyperparameter = 0.9, b2: Hyperparameter = 0.999, eps: Hyperparameter = 1e-8
) -> GradientTransformation:
    r"""Return the update direction of Adam, without learning rate and sign.

    $$u = \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}$$

    with the moments of `adam`.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: >= 0, added to the square root of the bias-corrected `v`.

    Returns:
        A transformation with a `ScaleByAdamState`.

    Raises:
        ValueError: a hyper-parameter is out of range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> direction = scale_by_adam()
        >>> direction.update(params, direction.init(params), params)[0]
        {'w': tensor([ 1.0000, -1.0000])}
    """
    _check_moments(b1, b2, eps)

    def init(params: PyTree) -> ScaleByAdamState:
        return _zero_moments(params)

    def update(
        grads: PyTree, state: ScaleByAdamState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ScaleByAdamState]:
        return _advance((b1, b2, eps), grads, state, params)

    return checked("scale_by_adam", ScaleByAdamState, init, update)


def _check_moments(b1: Hyperparameter, b2: Hyperparameter, eps: Hyperparameter) -> None:
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.non_negative("eps", eps)


def _zero_moments(params: PyTree) -> ScaleByAdamState:
    leaves, _ = parameters(params)
    count = zero_count(first_device(leaves))
    return ScaleByAdamState(count, zeros_like(params), zeros_like(params))


def _init(learning_rate: LearningRate, params: PyTree) -> AdamState:
    count, mu, nu = _zero_moments(params)
    return AdamState(count, rate_at(learning_rate, count).float(), mu, nu)


def _advance(
    hyper: tuple[Hyperparameter, Hyperparameter, Hyperparameter],
    grads: PyTree,
    state: ScaleByAdamState,
    params: PyTree | None,
    *,
    factor: Hyperparameter = 1.0,
    shrink: Hyperparameter = 0.0,
    decays: Sequence[bool] | None = None,
) -> tuple[PyTree, ScaleByAdamState]:
    """Return the update (`factor` times Adam's direction, minus weight decay) and the new state."""
    b1, b2, eps = hyper
    count = state.count + 1
    updates, mu, nu = each_leaf(
        _rule,
        grads,
        params,
        {"mu": state.mu, "nu": state.nu},
        mask=decays,
        together=_together,
        one_b1=1 - b1,
        b2=b2,
        one_b2=1 - b2,
        correction=debias(b2, count).sqrt(),
        eps=eps,
        step=factor / debias(b1, count),
        shrink_by=shrink,
    )
    return updates, ScaleByAdamState(count, mu, nu)


def _rule(
    leaf: Leaf,
    one_b1: Hyperparameter,
    b2: Hyperparameter,
    one_b2: Hyperparameter,
    correction: Hyperparameter,
    eps: Hyperparameter,
    step: Hyperparameter,
    shrink_by: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (m, v) = leaf.grad, leaf.memory
    m = torch.lerp(m, g, one_b1)
    v = torch.addcmul(v * b2, g * one_b2, g)
    u = m * step / (safe_sqrt(v) / correction + eps)
    # The decay of a bfloat16 parameter is rounded to its dtype, before the difference.
    return u - leaf.param * shrink_by if leaf.masked else u, m, v


def _together(leaves: Sequence[Leaf], place: Place) -> Sequence[tuple[torch.Tensor, ...]] | None:
    kernel = adam_kernel(_rule) if may_compute(leaves) else None
    first = leaves[0].param
    return None if kernel is None else kernel(leaves, place(first.device, first.dtype)[0])
