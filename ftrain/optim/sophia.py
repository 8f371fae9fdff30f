"""Sophia-H: momentum divided by an estimate of the curvature, clipped element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ftrain.core import random, tree
from ftrain.core.cond import apply_if
from ftrain.core.functional import value_and_grad
from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, debias, each_leaf
from ftrain.optim._leaves import (
    first_device,
    matching_leaves,
    parameters,
    scalars_by_device,
    within,
    zeros_like,
)
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at, zero_count
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["SophiaState", "hutchinson_diagonal", "sophia"]

ValueFn = Callable[[PyTree], torch.Tensor]


class SophiaState(NamedTuple):
    """State of `sophia`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        key: int32, shape (2,). The key of the next estimate.
        mu: running mean of the gradients, a tree like the parameters; at least float32.
        hessian: running mean of the estimates of the Hessian's diagonal; a tree like `mu`.
    """

    count: Count
    learning_rate: torch.Tensor
    key: torch.Tensor
    mu: PyTree
    hessian: PyTree


@algorithm
def sophia(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.965,
    b2: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    *,
    gamma: Hyperparameter = 0.01,
    clip_threshold: Hyperparameter = 1.0,
    update_interval: int = 10,
    weight_decay: Hyperparameter = 1e-4,
    key: int | torch.Tensor = 0,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return Sophia-H: clipped momentum over curvature, for language models.

    $$u = -\eta \left( \mathrm{clip}\left(\frac{m / (1 - \beta_1^t)}{\max(\gamma h, \epsilon)}, c\right)
    + \lambda p \right), \qquad m = \beta_1 m + (1 - \beta_1) g$$

    and after every `update_interval`-th update, the first included, $h = \beta_2 h + (1 - \beta_2)
    z (H z)$: Hutchinson's estimate of the diagonal of the Hessian $H$, with signs $z$ drawn from
    the key in the state. $c$ is `clip_threshold`.

    $H z$ is the derivative of the gradient of `value_fn`, so the loss must be differentiable twice.
    In a compiled step the other updates skip this computation; under `torch.vmap` they do not. With
    `precision="bf16-mixed"` the product has that precision too: on an MLP and a small GPT the
    estimate is off by 0.5 to 0.9 % in the norm, while the random $z$ alone spreads it by 600 %.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the estimates, in [0, 1).
        eps: >= 0, a lower bound of the curvature in the division.
        gamma: > 0. Larger values clip fewer elements; choose it so that about half are clipped.
        clip_threshold: > 0, the largest step of an element, in units of the learning rate.
        update_interval: the number of updates from one estimate to the next, >= 1.
        weight_decay: >= 0, multiplied by the learning rate.
        key: the source of the random signs; a seed, or a key (int32, `(2,)`).
        mask: a tree of bools, a function of the parameters, or None for all. Default: `optim.matrices`,
            no decay on vectors and scalars; `optim.everything` decays all, as optax does.

    Returns:
        A transformation with a `SophiaState`. `update` needs `params` and `value_fn`, a function
        `params -> loss`; the steps of `ftrain.make_steps` pass it.

    Raises:
        ValueError: a hyper-parameter is out of range; there is no `value_fn`; gradients and parameters
            differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.
        NotImplementedError: the loss uses an operator that cannot be differentiated twice.

    Example:
        >>> optimizer = sophia(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> state = optimizer.init(params)
        >>> grads = {"w": torch.tensor([6.0, -12.0])}  # of 3 w^2
        >>> updates, state = optimizer.update(
        ...     grads, state, params, value_fn=lambda params: 3 * params["w"].square().sum()
        ... )
        >>> state.hessian  # a hundredth of 6, the second derivative
        {'w': tensor([0.0600, 0.0600])}

    References:
        Liu, Li, Hall, Liang, Ma (2023), [Sophia: A Scalable Stochastic Second-order Optimizer for
        Language Model Pre-training](https://arxiv.org/abs/2305.14342). As in optax, the signs are
        Rademacher-distributed where the paper draws normal numbers, the mean is bias-corrected, and an
        estimate is used from the next update on.
    """
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.non_negative("eps", eps)
    _checks.positive("gamma", gamma)
    _checks.positive("clip_threshold", clip_threshold)
    _checks.positive_int("update_interval", update_interval)
    _checks.non_negative("weight_decay", weight_decay)
    first_key = random.key(key) if isinstance(key, int) else key
    random.split(first_key)  # raises unless this is a single key

    def init(params: PyTree) -> SophiaState:
        leaves, _ = parameters(params)
        mask_leaves(mask, params)
        device = first_device(leaves)
        count = zero_count(device)
        return SophiaState(
            count,
            rate_at(learning_rate, count).float(),
            first_key.clone().to(device),
            zeros_like(params),
            zeros_like(params),
        )

    def update(
        grads: PyTree,
        state: SophiaState,
        params: PyTree | None = None,
        *,
        value_fn: ValueFn | None = None,
        **extra: Any,
    ) -> tuple[PyTree, SophiaState]:
        value_fn = _checks.function_needed("sophia", "value_fn", value_fn)
        (hs, _), _ = matching_leaves(
            ("state.hessian", state.hessian), ("grads", grads), strict_dtype=False
        )
        rate = rate_at(learning_rate, state.count)
        updates, mu = each_leaf(
            _rule,
            grads,
            params,
            {"mu": state.mu},
            mask=mask_leaves(mask, params),
            shrink=rate * weight_decay,
            also=hs,
            one_b1=1 - b1,
            correction=debias(b1, state.count + 1),
            gamma=gamma,
            eps=eps,
            clip_threshold=clip_threshold,
            rate=rate,
        )

        def estimated(old: tuple[torch.Tensor, PyTree]) -> tuple[torch.Tensor, PyTree]:
            keys = random.split(old[0])
            diagonal = hutchinson_diagonal(value_fn, params, keys[1])
            return keys[0], _mean(old[1], diagonal, b2)

        due = state.count % update_interval == 0
        next_key, hessian = apply_if(due, estimated, (state.key, state.hessian))
        return updates, SophiaState(state.count + 1, rate.float(), next_key, mu, hessian)

    return checked("sophia", SophiaState, init, update, needs_params=True)


def _rule(
    leaf: Leaf,
    one_b1: Hyperparameter,
    correction: Hyperparameter,
    gamma: Hyperparameter,
    eps: Hyperparameter,
    clip_threshold: Hyperparameter,
    rate: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    m = torch.lerp(leaf.memory[0], leaf.grad, one_b1)
    curvature = torch.clamp(leaf.also * gamma, min=eps)
    return within(m / correction / curvature, clip_threshold) * -rate, m


def hutchinson_diagonal(value_fn: ValueFn, params: PyTree, key: torch.Tensor) -> PyTree:
    """Return an unbiased estimate of the Hessian's diagonal: $z (H z)$, with random signs $z$.

    Exact if the Hessian is diagonal; otherwise the variance of an element is the sum of the squares
    of the other elements in its row.

    Args:
        value_fn: `params -> loss`, 0-d, differentiable twice.
        params: a tree of floating tensors.
        key: int32, shape (2,). Leaf `i` has the signs of `fold_in(key, i)`.

    Returns:
        A tree like `params`.

    Raises:
        NotImplementedError: an operator in `value_fn` has no second derivative.

    Example:
        >>> cubes = lambda params: params["w"].pow(3).sum()
        >>> hutchinson_diagonal(cubes, {"w": torch.tensor([1.0, 2.0])}, random.key(0))
        {'w': tensor([ 6., 12.])}

    References:
        Hutchinson (1990), "A Stochastic Estimator of the Trace of the Influence Matrix for
        Laplacian Smoothing Splines".
    """
    leaves, treedef = parameters(params)
    signs = [
        random.bernoulli(key, 0.5, p.shape, folds=(i,)).to(p.dtype) * 2 - 1
        for i, p in enumerate(leaves)
    ]

    def slope(params: PyTree) -> torch.Tensor:
        _, grads = value_and_grad(value_fn, differentiable=True)(params)
        products = [(g * z).sum() for g, z in zip(tree.leaves(grads), signs, strict=True)]
        # The gradient of a linear function does not depend on the parameters; these terms connect it to
        # them, so that its derivative exists and is zero.
        products += [0.0 * p.sum() for p in tree.leaves(params)]
        return torch.stack([product.to(torch.float64) for product in products]).sum()

    if not leaves:
        return params
    _, turned = value_and_grad(slope)(params)
    products = [h * z for h, z in zip(tree.leaves(turned), signs, strict=True)]
    return tree.unflatten(treedef, products)


def _mean(old: PyTree, new: PyTree, b2: Hyperparameter) -> PyTree:
    place = scalars_by_device(1 - b2)

    def one(h: torch.Tensor, estimate: torch.Tensor) -> torch.Tensor:
        (one_b2,) = place(h.device, h.dtype)
        return torch.lerp(h, estimate.to(h.dtype), one_b2)

    return tree.map(one, old, new)
