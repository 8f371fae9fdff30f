"""Clipping of gradients by their global norm, or separately for each leaf, output unit or entry."""

from __future__ import annotations

import math
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.norm import global_norm
from ftrain.optim import _checks
from ftrain.optim._leaf_loop import Leaf, stateless
from ftrain.optim._leaves import compute_dtype, gradients, scalars_by_device, within
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = ["adaptive_clip", "clip", "clip_by_block_rms", "clip_by_global_norm"]


def clip_by_global_norm(max_norm: Hyperparameter) -> GradientTransformation:
    r"""Scale all gradients by one factor so that their global norm is at most `max_norm`.

    $$u = g \, \min\left(1, \frac{\mathrm{max\_norm}}{\lVert g \rVert + 10^{-6}}\right)$$

    Equal to the bit to `torch.nn.utils.clip_grad_norm_` on gradients of float32 or float64.
    `optax.clip_by_global_norm` has no `1e-6`: it leaves gradients unchanged if their norm is below
    `max_norm`, and scales others to exactly `max_norm`; the result here is shorter by a relative
    `1e-6 / ||g||`. A norm of NaN makes every update NaN, and an infinite norm makes it zero or NaN: the
    training step decides whether to skip such an update.

    Args:
        max_norm: a finite number >= 0, in units of the gradient.

    Example:
        >>> clip_by_global_norm(1.0).update({"w": torch.tensor([3.0, 4.0])}, ())[0]
        {'w': tensor([0.6000, 0.8000])}

    References:
        Pascanu, Mikolov, Bengio (2013), [On the difficulty of training recurrent neural
        networks](https://arxiv.org/abs/1211.5063).
    """
    _checks.non_negative("max_norm", max_norm)

    def init(params: PyTree) -> PyTree:
        return ()

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        leaves, treedef = gradients(grads)
        if not leaves:
            return grads, state
        # The same expression as the step's `grad_norm`, so that a compiled step evaluates it once.
        norm = global_norm(grads)
        place = scalars_by_device(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        kinds = {(g.device, g.dtype) for g in leaves}
        factors = {kind: place(kind[0], compute_dtype(kind[1]))[0] for kind in kinds}
        clipped = [(g * factors[g.device, g.dtype]).to(g.dtype) for g in leaves]
        return tree.unflatten(treedef, clipped), state

    return GradientTransformation(init, update)


def clip(max_delta: Hyperparameter) -> GradientTransformation:
    """Clamp every entry of the gradients to `[-max_delta, max_delta]`.

    Equal to the bit to `torch.nn.utils.clip_grad_value_` and `optax.clip`. An infinite entry is
    clamped too, a NaN stays.

    Args:
        max_delta: a finite number >= 0, in units of the gradient.

    Example:
        >>> clip(1.0).update({"w": torch.tensor([3.0, -0.5])}, ())[0]
        {'w': tensor([ 1.0000, -0.5000])}
    """
    _checks.non_negative("max_delta", max_delta)

    def clipped(leaf: Leaf, bound: Hyperparameter) -> tuple[torch.Tensor]:
        return (within(leaf.grad, bound).to(leaf.grad.dtype),)

    return stateless(None, clipped, bound=max_delta)


def clip_by_block_rms(threshold: Hyperparameter) -> GradientTransformation:
    r"""Scale each leaf separately so that its root mean square is at most `threshold`.

    $$u = \frac{g}{\max(1, \mathrm{rms}(g) / \mathrm{threshold})}$$

    The same as `optax.clip_by_block_rms`. Adafactor clips its updates like this.

    Args:
        threshold: a finite number > 0, in units of the gradient.

    Example:
        >>> grads = {"a": torch.tensor([3.0, 3.0]), "b": torch.tensor([0.5])}
        >>> clip_by_block_rms(1.0).update(grads, ())[0]
        {'a': tensor([1., 1.]), 'b': tensor([0.5000])}

    References:
        Shazeer, Stern (2018), [Adafactor: Adaptive Learning Rates with Sublinear Memory
        Cost](https://arxiv.org/abs/1804.04235).
    """
    _checks.positive("threshold", threshold)

    def clipped(leaf: Leaf, threshold: Hyperparameter) -> tuple[torch.Tensor]:
        g = leaf.grad
        if not g.numel():
            return (g,)
        wide = g.to(compute_dtype(g.dtype))
        return ((wide / torch.clamp(block_rms(wide) / threshold, min=1.0)).to(g.dtype),)

    return stateless(None, clipped, threshold=threshold)


def adaptive_clip(clipping: Hyperparameter, eps: Hyperparameter = 1e-3) -> GradientTransformation:
    r"""Limit each output unit's gradient to `clipping` times the norm of the unit's weights (AGC).

    $$u = g \, \min\left(1, \frac{\mathrm{clipping} \, \max(\lVert p \rVert, \epsilon)}
    {\lVert g \rVert}\right)$$

    The norms are those of a unit: a row of a matrix, a filter of a convolution (all but the first
    axis, torch's layout), a whole vector, a scalar. `optax.adaptive_grad_clip` takes units along
    the last axis, JAX's layout. The paper excludes the last layer.

    Args:
        clipping: the largest ratio of gradient norm to weight norm, a finite number >= 0; the paper uses
            0.01.
        eps: a lower bound of the weight norm, >= 0; with 0, weights of zero stay zero.

    Returns:
        A transformation without state. `update` needs `params`.

    Raises:
        ValueError: `update` is called without parameters.

    Example:
        >>> params = {"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}
        >>> adaptive_clip(0.1).update({"w": torch.full((2, 2), 0.1)}, (), params)[0]
        {'w': tensor([[0.1000, 0.1000], [0.0707, 0.0707]])}

    References:
        Brock, De, Smith, Simonyan (2021), [High-Performance Large-Scale Image Recognition Without
        Normalization](https://arxiv.org/abs/2102.06171).
    """
    _checks.non_negative("clipping", clipping)
    _checks.non_negative("eps", eps)

    def clipped(leaf: Leaf, clipping: Hyperparameter, eps: Hyperparameter) -> tuple[torch.Tensor]:
        g, p = leaf.grad, leaf.param
        dtype = compute_dtype(p.dtype)
        grad_norm, param_norm = _unit_norm(g, dtype), _unit_norm(p, dtype)
        max_norm = torch.clamp(param_norm, min=eps) * clipping
        shorter = max_norm / torch.clamp(grad_norm, min=1e-6)
        factor = torch.where(grad_norm > max_norm, shorter, 1.0)
        return ((g.to(dtype) * factor).to(g.dtype),)

    return stateless("adaptive_clip", clipped, clipping=clipping, eps=eps)


def block_rms(x: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of a non-empty tensor, as a 0-d tensor."""
    norm: torch.Tensor = torch.linalg.vector_norm(x)
    return norm / math.sqrt(x.numel())


def _unit_norm(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    dims = tuple(range(1, x.ndim)) if x.ndim > 1 else None
    norm: torch.Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=x.ndim > 1, dtype=dtype)
    return norm
