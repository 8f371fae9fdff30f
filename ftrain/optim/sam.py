"""Sharpness-aware minimization: steps along the gradient at the worst point nearby."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.norm import global_norm
from ftrain.core.optimizer import apply_updates
from ftrain.optim import _checks
from ftrain.optim._checked import required_params
from ftrain.optim._leaves import compute_dtype, matching_leaves
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree
from ftrain.optim.scale import scaled

__all__ = ["asam", "sam"]

_TINY = 1e-12  # avoids a division by zero for a gradient of zero, as in both papers' code


def sam(inner: GradientTransformation, rho: Hyperparameter = 0.05) -> GradientTransformation:
    r"""Return sharpness-aware minimization: `inner` gets the gradient at $p + \rho g / \lVert g \rVert$.

    Each update computes a second gradient on the same batch with the same random draws, by
    `grad_fn`, which a training step passes. Put clipping inside, `sam(chain(clip_by_global_norm(1.0),
    ...))`. A step that skips non-finite gradients checks the first gradient only: if the second may
    overflow, write `sam(skip_nonfinite(...))`. Freeze parameters outside, `freeze(sam(...), mask)`:
    `sam(freeze(...))` perturbs all parameters, frozen ones included.

    Args:
        inner: the optimizer of the second gradients.
        rho: the distance to the point of the second gradient, a finite number >= 0.

    Returns:
        A transformation with the state of `inner`. `update` needs `params` and `grad_fn`.

    Raises:
        ValueError: `rho` out of its range; `update` is called without `params` or `grad_fn`.

    Example:
        >>> from ftrain import optim
        >>> optimizer = sam(optim.sgd(0.1), rho=1.0)
        >>> params = {"w": torch.tensor([2.0])}
        >>> gradient = lambda params: {"w": 2 * params["w"]}  # of w squared
        >>> updates, _ = optimizer.update(
        ...     gradient(params), optimizer.init(params), params, grad_fn=gradient
        ... )
        >>> updates  # by the gradient at 3
        {'w': tensor([-0.6000])}

    References:
        Foret, Kleiner, Mobahi, Neyshabur (2021), [Sharpness-Aware Minimization for Efficiently
        Improving Generalization](https://arxiv.org/abs/2010.01412).
    """
    _checks.non_negative("rho", rho)

    def climb(grads: list[torch.Tensor], params: list[torch.Tensor]) -> list[torch.Tensor]:
        return scaled(grads, rho / (global_norm(grads) + _TINY))

    return _elsewhere("sam", inner, climb)


def asam(
    inner: GradientTransformation, rho: Hyperparameter = 0.5, eta: Hyperparameter = 0.01
) -> GradientTransformation:
    r"""Return adaptive SAM, which is `sam` in a neighbourhood that scales with the parameters.

    `inner` gets the gradient at $p + \rho T^2 g / \lVert T g \rVert$ with $T = |p| + \eta$. (The
    authors' code leaves biases unscaled, $T = 1$; the paper's equation, and this function, scale
    all.)

    Args:
        inner: the optimizer of the second gradients.
        rho: the distance to the point of the second gradient, relative to the parameters; a finite
            number >= 0.
        eta: >= 0; if positive, parameters of zero are perturbed too.

    Returns:
        A transformation with the state of `inner`. `update` needs `params` and `grad_fn`.

    Raises:
        ValueError: a number out of its range; `update` is called without `params` or `grad_fn`.

    Example:
        >>> from ftrain import optim
        >>> optimizer = asam(optim.sgd(0.1), rho=0.5, eta=0.0)
        >>> params = {"w": torch.tensor([2.0])}
        >>> gradient = lambda params: {"w": 2 * params["w"]}  # of w squared
        >>> updates, _ = optimizer.update(
        ...     gradient(params), optimizer.init(params), params, grad_fn=gradient
        ... )
        >>> updates  # by the gradient at 3
        {'w': tensor([-0.6000])}

    References:
        Kwon, Kim, Park, Choi (2021), [ASAM: Adaptive Sharpness-Aware Minimization for
        Scale-Invariant Learning of Deep Neural Networks](https://arxiv.org/abs/2010.01412).
    """
    _checks.non_negative("rho", rho)
    _checks.non_negative("eta", eta)

    def climb(grads: list[torch.Tensor], params: list[torch.Tensor]) -> list[torch.Tensor]:
        sizes = [p.abs().to(compute_dtype(p.dtype)) + eta for p in params]
        stretched = [size * g.to(size.dtype) for size, g in zip(sizes, grads, strict=True)]
        steps = scaled(stretched, rho / (global_norm(stretched) + _TINY))
        return [size * step for size, step in zip(sizes, steps, strict=True)]

    return _elsewhere("asam", inner, climb)


Climb = Callable[[list[torch.Tensor], list[torch.Tensor]], list[torch.Tensor]]


def _elsewhere(name: str, inner: GradientTransformation, climb: Climb) -> GradientTransformation:
    _checks.optimizer(name, inner)

    def update(
        grads: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        grad_fn: Callable[[PyTree], PyTree] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, PyTree]:
        params = required_params(name, params)
        there = _checks.function_needed(name, "grad_fn", grad_fn)
        (ps, gs), treedef = matching_leaves(("params", params), ("grads", grads))
        worst = apply_updates(params, tree.unflatten(treedef, climb(gs, ps)))
        return inner.update(there(worst), state, params, grad_fn=grad_fn, **extra)

    return GradientTransformation(inner.init, update)
