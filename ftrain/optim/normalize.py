"""Normalization of updates: to signs, to a fixed norm, or to the norm of the parameters."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.norm import global_norm
from ftrain.optim import _checks
from ftrain.optim._leaf_loop import Leaf, stateless
from ftrain.optim._leaves import compute_dtype, gradients
from ftrain.optim.clip import block_rms
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree
from ftrain.optim.scale import scaled

__all__ = [
    "centralize",
    "normalize_by_update_norm",
    "scale_by_param_block_rms",
    "scale_by_sign",
    "scale_by_trust_ratio",
    "signs",
]


def centralize() -> GradientTransformation:
    r"""Center the gradient of each output unit (matrix row or convolution filter): subtract its mean.

    The mean is over all axes but the first, as in `optax.centralize`. Vectors and scalars stay
    unchanged.

    Example:
        >>> centralize().update({"w": torch.tensor([[1.0, 3.0]]), "b": torch.tensor([1.0, 3.0])}, ())[0]
        {'w': tensor([[-1.,  1.]]), 'b': tensor([1., 3.])}

    References:
        Yong, Huang, Hua, Zhang (2020), [Gradient Centralization: A New Optimization Technique for
        Deep Neural Networks](https://arxiv.org/abs/2004.01461).
    """

    def centered(leaf: Leaf) -> tuple[torch.Tensor]:
        g = leaf.grad
        wide = g.to(compute_dtype(g.dtype))
        if g.ndim < 2 or not g.numel():
            return (wide,)
        return (wide - wide.mean(tuple(range(1, g.ndim)), keepdim=True),)

    return stateless(None, centered)


def scale_by_sign() -> GradientTransformation:
    """Replace every entry of the gradients by its sign: -1, 0 or 1; NaN stays NaN.

    Example:
        >>> scale_by_sign().update({"w": torch.tensor([3.0, -0.5, 0.0])}, ())[0]
        {'w': tensor([ 1., -1.,  0.])}

    References:
        Bernstein, Wang, Azizzadenesheli, Anandkumar (2018), [signSGD: Compressed Optimisation for
        Non-Convex Problems](https://arxiv.org/abs/1802.04434).
    """
    return stateless(None, lambda leaf: (signs(leaf.grad.to(compute_dtype(leaf.grad.dtype))),))


def normalize_by_update_norm(
    scale_factor: Hyperparameter = 1.0, eps: Hyperparameter = 1e-6
) -> GradientTransformation:
    r"""Scale all gradients to a fixed global norm: $u = c \, g / (\lVert g \rVert + \epsilon)$.

    The norm is that of the whole tree, as in `optax.normalize_by_update_norm`.

    Args:
        scale_factor: the norm of the updates, a finite number >= 0.
        eps: >= 0, in units of the gradient; gradients much shorter than `eps` stay short.

    Example:
        >>> normalize_by_update_norm(10.0).update({"w": torch.tensor([3.0, 4.0])}, ())[0]
        {'w': tensor([6.0000, 8.0000])}
    """
    _checks.non_negative("scale_factor", scale_factor)
    _checks.non_negative("eps", eps)

    def init(params: PyTree) -> PyTree:
        return ()

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        leaves, treedef = gradients(grads)
        factor = scale_factor / (global_norm(grads) + eps)
        return tree.unflatten(treedef, scaled(leaves, factor)), state

    return GradientTransformation(init, update)


def scale_by_trust_ratio(
    trust_coefficient: Hyperparameter = 1.0,
    *,
    min_norm: Hyperparameter = 0.0,
    eps: Hyperparameter = 0.0,
) -> GradientTransformation:
    r"""Scale each leaf's update by the ratio of its parameters' norm to the update's norm.

    $$u = c \, g \, \frac{\lVert p \rVert}{\lVert g \rVert + \epsilon}$$

    and $u = g$ if either norm is zero. The same as `optax.scale_by_trust_ratio`; LARS and LAMB scale
    their directions like this.

    Args:
        trust_coefficient: the norm of an update, relative to the norm of its parameters, >= 0.
        min_norm: a lower bound of both norms, >= 0.
        eps: >= 0, in units of the gradient.

    Returns:
        A transformation without state. `update` needs `params`.

    Raises:
        ValueError: `update` is called without parameters.

    Example:
        >>> params = {"w": torch.tensor([6.0, 8.0])}
        >>> scale_by_trust_ratio(0.1).update({"w": torch.tensor([0.3, 0.4])}, (), params)[0]
        {'w': tensor([0.6000, 0.8000])}

    References:
        You, Gitman, Ginsburg (2017), [Large Batch Training of Convolutional
        Networks](https://arxiv.org/abs/1708.03888).
    """
    _checks.non_negative("trust_coefficient", trust_coefficient)
    _checks.non_negative("min_norm", min_norm)
    _checks.non_negative("eps", eps)

    def trusted(
        leaf: Leaf, coefficient: Hyperparameter, min_norm: Hyperparameter, eps: Hyperparameter
    ) -> tuple[torch.Tensor]:
        g, p = leaf.grad, leaf.param
        dtype = compute_dtype(p.dtype)
        grad_norm = torch.linalg.vector_norm(g, dtype=dtype).clamp(min=min_norm)
        param_norm = torch.linalg.vector_norm(p, dtype=dtype).clamp(min=min_norm)
        zero = (grad_norm == 0) | (param_norm == 0)
        # No 0 / 0 in the branch that is not taken: it would make hypergradients NaN.
        ratio = coefficient * param_norm / torch.where(zero, 1.0, grad_norm + eps)
        return (g.to(dtype) * torch.where(zero, 1.0, ratio),)

    return stateless(
        "scale_by_trust_ratio", trusted, coefficient=trust_coefficient, min_norm=min_norm, eps=eps
    )


def scale_by_param_block_rms(min_scale: Hyperparameter = 1e-3) -> GradientTransformation:
    r"""Multiply each leaf by the root mean square of its parameters.

    $$u = g \, \max(\mathrm{rms}(p), \mathrm{min\_scale})$$

    This makes steps relative to the size of the weights, as in Adafactor. The same as
    `optax.scale_by_param_block_rms`.

    Args:
        min_scale: a lower bound of the root mean square, >= 0; with 0, parameters of zero stay zero.

    Returns:
        A transformation without state. `update` needs `params`.

    Raises:
        ValueError: `update` is called without parameters.

    Example:
        >>> params = {"w": torch.tensor([2.0, -2.0])}
        >>> scale_by_param_block_rms().update({"w": torch.tensor([1.0, 0.5])}, (), params)[0]
        {'w': tensor([2., 1.])}

    References:
        Shazeer, Stern (2018), [Adafactor: Adaptive Learning Rates with Sublinear Memory
        Cost](https://arxiv.org/abs/1804.04235).
    """
    _checks.non_negative("min_scale", min_scale)

    def relative(leaf: Leaf, min_scale: Hyperparameter) -> tuple[torch.Tensor]:
        g, p = leaf.grad, leaf.param
        dtype = compute_dtype(p.dtype)
        if not p.numel():
            return (g.to(dtype),)
        return (g.to(dtype) * block_rms(p.to(dtype)).clamp(min=min_scale),)

    return stateless("scale_by_param_block_rms", relative, min_scale=min_scale)


def signs(x: torch.Tensor) -> torch.Tensor:
    """Return -1, 0 or 1 for each entry, and NaN for NaN, which `torch.sign` would turn into 0."""
    return torch.where(x.isnan(), x, x.sign())
