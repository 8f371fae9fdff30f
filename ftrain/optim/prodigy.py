"""Prodigy: Adam that estimates its learning rate from the distance moved along the gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, debias, each_leaf
from ftrain.optim._leaves import (
    add_scaled,
    compute_dtype,
    first_device,
    parameters,
    safe_sqrt,
    scalars_by_device,
    zeros_like,
)
from ftrain.optim._rate import LearningRate, check_learning_rate, double, rate_at, zero_count
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["ProdigyState", "prodigy"]


class ProdigyState(NamedTuple):
    """State of `prodigy`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The factor of the last update; before the first, of the first.
        distance: float64, 0-d. The estimate `d` of the distance to the solution; it never falls.
        numerator: float64, 0-d. Numerator of the estimate, a decaying sum over the gradients.
        mu: running mean of the scaled gradients `d g`, a tree like the parameters; at least float32.
        nu: running mean of the squared scaled gradients; a tree like `mu`.
        grad_sum: decaying sum of the gradients; a tree like `mu`.
        start: the initial parameters; a tree like `mu`.
    """

    count: Count
    learning_rate: torch.Tensor
    distance: torch.Tensor
    numerator: torch.Tensor
    mu: PyTree
    nu: PyTree
    grad_sum: PyTree
    start: PyTree


@algorithm
def prodigy(
    learning_rate: LearningRate = 1.0,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    b3: Hyperparameter | None = None,
    eps: Hyperparameter = 1e-8,
    *,
    d0: float = 1e-6,
    d_coef: Hyperparameter = 1.0,
    weight_decay: Hyperparameter = 0.0,
    safeguard_warmup: bool = False,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return Prodigy: Adam whose learning rate is an estimate of the distance to the solution.

    $$u = -s \left( \frac{m}{\sqrt{v} + d' \epsilon} + \lambda p \right), \quad
    s = d \eta \, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}, \quad
    m = \beta_1 m + (1 - \beta_1) d g, \quad v = \beta_2 v + (1 - \beta_2) (d g)^2$$

    with the estimate

    $$d' = \max\left(d, \frac{d_{coef} \, r}{\lVert q \rVert_1}\right), \quad
    r = \beta_3 r + \frac{d s}{d_0} \langle g, p_0 - p \rangle, \quad
    q = \beta_3 q + \frac{d s}{d_0} g$$

    Args:
        learning_rate: a factor, best left at 1; a number >= 0, a 0-d tensor, or a schedule with 1 as
            its peak (first called with 0).
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        b3: decay of the sums behind the estimate, in [0, 1). Default: `sqrt(b2)`.
        eps: >= 0, multiplied by the estimate.
        d0: the first estimate, > 0. A value that is too small costs some updates; one that is too large
            is never corrected.
        d_coef: a factor of the estimate, > 0.
        weight_decay: >= 0, decoupled from the gradients.
        safeguard_warmup: leave the rate out of `q` (`s` becomes `d`), for long warmups.
        mask: a tree of bools, a function of the parameters, or None for all. Default: `optim.matrices`,
            no decay on vectors and scalars; `optim.everything` decays all, as optax does.

    Returns:
        A transformation with a `ProdigyState`. `update` needs `params`.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> from ftrain import optim
        >>> optimizer = prodigy()
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> state = optimizer.init(params)
        >>> for _ in range(100):
        ...     updates, state = optimizer.update(params, state, params)
        ...     params = optim.apply_updates(params, updates)
        >>> bool(params["w"].abs().max() < 0.5)  # without a rate to choose
        True

    References:
        Mishchenko, Defazio (2023), [Prodigy: An Expeditiously Adaptive Parameter-Free
        Learner](https://arxiv.org/abs/2306.06101).
    """
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.non_negative("eps", eps)
    _checks.non_negative("weight_decay", weight_decay)
    _checks.positive("d0", d0)
    _checks.positive("d_coef", d_coef)
    if b3 is None:
        b3 = b2**0.5
    _checks.fraction("b3", b3)
    decay_of_sums = b3  # never None, so that mypy accepts it in the closure

    def init(params: PyTree) -> ProdigyState:
        leaves, treedef = parameters(params)
        mask_leaves(mask, params)
        device = first_device(leaves)
        count = zero_count(device)
        start = [p.to(compute_dtype(p.dtype), copy=True) for p in leaves]
        return ProdigyState(
            count,
            rate_at(learning_rate, count).float(),
            double(d0, device),
            double(0.0, device),
            zeros_like(params),
            zeros_like(params),
            zeros_like(params),
            tree.unflatten(treedef, start),
        )

    def update(
        grads: PyTree, state: ProdigyState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ProdigyState]:
        rate = rate_at(learning_rate, state.count)
        count = state.count + 1
        d = state.distance
        step = d * rate * (debias(b2, count).sqrt() / debias(b1, count))
        added = d * (d if safeguard_warmup else step) / d0
        along, mu, nu, grad_sum, sizes = each_leaf(
            _advance,
            grads,
            params,
            {"mu": state.mu, "nu": state.nu, "grad_sum": state.grad_sum},
            also=tree.leaves(state.start),
            further=1,
            one_b1=1 - b1,
            b2=b2,
            one_b2=1 - b2,
            b3=decay_of_sums,
            distance=d,
            added=added,
        )
        come, size = _total(along, d), _total(sizes, d)
        numerator = state.numerator * decay_of_sums + d / d0 * step * come
        estimate = torch.where(size > 0, d_coef * numerator / size, 0.0)
        distance = torch.maximum(d, estimate)
        place = scalars_by_device(-step, distance * eps, step * weight_decay)
        decays = mask_leaves(mask, params)
        rows = zip(tree.leaves(mu), tree.leaves(nu), tree.leaves(params), decays, strict=True)
        updates = tree.unflatten(
            tree.structure(mu), [_step(*row, *place(row[0].device, row[0].dtype)) for row in rows]
        )
        new = ProdigyState(
            count,
            rate.float(),
            distance,
            numerator,
            mu,
            nu,
            grad_sum,
            tree.map(torch.clone, state.start),
        )
        return updates, new

    return checked("prodigy", ProdigyState, init, update, needs_params=True)


def _advance(
    leaf: Leaf,
    one_b1: Hyperparameter,
    b2: Hyperparameter,
    one_b2: Hyperparameter,
    b3: Hyperparameter,
    distance: Hyperparameter,
    added: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    """Return the new moments and sums of one leaf, from which Prodigy estimates the distance.

    These are: the inner product `<g, p_0 - p>` of the gradient and the distance from the initial
    parameter, the first and the second moment, the weighted sum of gradients, and its L1 norm.
    """
    g, (m, v, q) = leaf.grad, leaf.memory
    dg = g * distance
    q = add_scaled(q * b3, g, added)
    return (
        (g * (leaf.also - leaf.param.to(g.dtype))).sum(),
        torch.lerp(m, dg, one_b1),
        torch.addcmul(v * b2, dg * one_b2, dg),
        q,
        q.abs().sum(),
    )


def _step(
    m: torch.Tensor,
    v: torch.Tensor,
    p: torch.Tensor,
    decays: bool,
    step: Hyperparameter,
    eps: Hyperparameter,
    shrink: Hyperparameter,
) -> torch.Tensor:
    """Return the update of one leaf from its moments."""
    u = m * step / (safe_sqrt(v) + eps)
    return u - p.to(m.dtype) * shrink if decays else u


def _total(numbers: PyTree, like: torch.Tensor) -> torch.Tensor:
    """Return the sum of 0-d tensors, in the dtype (float64) and on the device of `like`."""
    each = [x.to(like.device) for x in tree.leaves(numbers)]
    return torch.stack([torch.zeros_like(like), *each]).sum()  # the stack converts to float64
