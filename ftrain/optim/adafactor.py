"""Adafactor: adaptive steps that store the second moments of a matrix as one row and one column."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.optimizer import like
from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, each_leaf, started
from ftrain.optim._leaves import compute_dtype, parameters
from ftrain.optim._rate import LearningRate, check_learning_rate, double, rate_at
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["AdafactorState", "adafactor"]


class AdafactorState(NamedTuple):
    """State of `adafactor`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        row: mean squares of each row, a tree like the parameters with last dimension 1; empty for
            vectors and scalars. At least float32.
        column: mean squares of each column, like `row`, but with second-to-last dimension 1.
        nu: mean squares of the elements of vectors and scalars; empty for other parameters.
    """

    count: Count
    learning_rate: torch.Tensor
    row: PyTree
    column: PyTree
    nu: PyTree


@algorithm
def adafactor(
    learning_rate: LearningRate,
    beta2_decay: Hyperparameter = -0.8,
    *,
    eps1: Hyperparameter | None = None,
    eps2: Hyperparameter = 1e-3,
    d: Hyperparameter = 1.0,
    weight_decay: Hyperparameter = 0.0,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return Adafactor: adaptive steps with sublinear memory, scaled by the RMS of each parameter.

    $$u = -\alpha \, \frac{x}{\max(1, \mathrm{rms}(x) / d)} - \eta \lambda p, \qquad
    x = \frac{g}{\sqrt{v}}, \quad
    \alpha = \max(\epsilon_2, \mathrm{rms}(p)) \, \min(\eta, 1 / \sqrt{t})$$

    For vectors $v = b v + (1 - b) g^2$ with $1 - b = t^{\beta_2\text{-decay}}$. For matrices $v = r
    c / \mathrm{mean}(r)$, from the means $r$ and $c$ of $g^2$ over rows and columns. Tensors of
    more dimensions are stacks of matrices in their last two.

    The same as `torch.optim.Adafactor`. `optax.adafactor` factors the two largest dimensions, and only
    if both are at least 128, has no $1 / \sqrt{t}$, adds 1e-30 to $g^2$ where this bounds $v$, and does
    not multiply the decay by the rate.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0). It
            is relative: at 0.01 a step changes parameters by about one in a hundred.
        beta2_decay: <= 0. At update `t`, the new squares have the weight `t ** beta2_decay`.
        eps1: >= 0, a lower bound of `mean(r)` and `sqrt(v)`; None for the machine epsilon of the compute
            dtype.
        eps2: >= 0, a lower bound of `rms(p)`.
        d: > 0, the value at which the root mean square of `x` is clipped.
        weight_decay: >= 0, multiplied by the learning rate.
        mask: the parameters that decay: a tree of bools, a function of the parameters, or None for all.

    Returns:
        A transformation with an `AdafactorState`. `update` needs `params`.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = adafactor(0.1)
        >>> params = {"w": torch.tensor([[1.0, -2.0], [3.0, 4.0]])}
        >>> state = optimizer.init(params)
        >>> optimizer.update(params, state, params)[0]
        {'w': tensor([[-0.2121,  0.3000],
                [-0.2846, -0.2683]])}
        >>> state.row["w"].shape, state.column["w"].shape, state.nu["w"].shape
        (torch.Size([2, 1]), torch.Size([1, 2]), torch.Size([0]))

    References:
        Shazeer, Stern (2018), [Adafactor: Adaptive Learning Rates with Sublinear Memory
        Cost](https://arxiv.org/abs/1804.04235).
    """
    check_learning_rate(learning_rate)
    _checks.falling_power("beta2_decay", beta2_decay)
    _checks.non_negative("eps2", eps2)
    _checks.positive("d", d)
    _checks.non_negative("weight_decay", weight_decay)
    if eps1 is not None:
        _checks.non_negative("eps1", eps1)

    def init(params: PyTree) -> AdafactorState:
        leaves, treedef = parameters(params)
        mask_leaves(mask, params)
        memories = [_zeros(p) for p in leaves]
        kept = (tree.unflatten(treedef, [m[i] for m in memories]) for i in range(3))
        return AdafactorState(*started(params, learning_rate), *kept)

    def update(
        grads: PyTree, state: AdafactorState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AdafactorState]:
        count, rate = state.count + 1, rate_at(learning_rate, state.count)
        t = count.to(torch.float64)
        memory = zip(*map(tree.leaves, (state.row, state.column, state.nu)), strict=True)
        updates, *trees = each_leaf(
            rule,
            grads,
            params,
            mask=mask_leaves(mask, params),
            shrink=rate * weight_decay,
            also=list(memory),
            further=3,
            weight=t ** double(beta2_decay, t.device),
            relative=torch.minimum(rate, 1 / t.sqrt()),
            eps2=eps2,
            d=d,
            least=0.0 if eps1 is None else eps1,
        )
        return updates, AdafactorState(count, rate.float(), *trees)

    def rule(
        leaf: Leaf,
        weight: Hyperparameter,
        relative: Hyperparameter,
        eps2: Hyperparameter,
        d: Hyperparameter,
        least: Hyperparameter,
    ) -> tuple[torch.Tensor, ...]:
        # The statistics have other shapes than the parameter, so they are passed as `also`.
        dtype = leaf.also[0].dtype
        least = torch.finfo(dtype).eps if eps1 is None else least
        g, p = leaf.grad.to(dtype), leaf.param.to(dtype)
        variance, *new = _variance(g, leaf.also, weight, least)
        x = g * variance.clamp(min=least * least).rsqrt()
        step = _rms(p).clamp(min=eps2) * relative / (_rms(x) / d).clamp(min=1.0)
        return (x * -step, *map(like, new, leaf.also))

    return checked("adafactor", AdafactorState, init, update, needs_params=True)


def _zeros(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the initial mean squares of one parameter: by row, by column, or by element."""
    dtype = compute_dtype(p.dtype)
    if p.ndim < 2:
        return (
            p.new_zeros(0, dtype=dtype),
            p.new_zeros(0, dtype=dtype),
            torch.zeros_like(p, dtype=dtype),
        )
    *stack, rows, columns = p.shape
    return (
        p.new_zeros((*stack, rows, 1), dtype=dtype),
        p.new_zeros((*stack, 1, columns), dtype=dtype),
        p.new_zeros(0, dtype=dtype),
    )


def _variance(
    g: torch.Tensor,
    memory: tuple[torch.Tensor, ...],
    weight: Hyperparameter,
    least: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    """Return the mean-square estimate of each element, and the new statistics (row, column, element)."""
    row, column, nu = memory
    square = g.square()
    if g.ndim < 2:
        nu = torch.lerp(nu, square, weight)
        return nu, row.clone(), column.clone(), nu
    row = torch.lerp(row, _mean(square, -1), weight)
    column = torch.lerp(column, _mean(square, -2), weight)
    return row * column / _mean(row, -2).clamp(min=least), row, column, nu.clone()


def _mean(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the mean over one dimension (`keepdim=True`), or 0 if the dimension is empty."""
    return x.sum(dim, keepdim=True) / max(x.shape[dim], 1)


def _rms(x: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of all elements, or 0 for an empty tensor."""
    norm: torch.Tensor = torch.linalg.vector_norm(x)
    return norm / math.sqrt(max(x.numel(), 1))
