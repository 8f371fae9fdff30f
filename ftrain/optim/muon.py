"""Muon: orthogonalized momentum for matrices, and AdamW for all other parameters."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.optimizer import like
from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, debias, each_leaf
from ftrain.optim._leaves import (
    compute_dtype,
    first_device,
    parameters,
    safe_sqrt,
    zeros_like,
)
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at, zero_count
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["MuonState", "muon", "orthogonalize"]

Coefficients = tuple[float, float, float]
QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)


class MuonState(NamedTuple):
    """State of `muon`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        adam_learning_rate: float32, 0-d. The same for the parameters that AdamW updates.
        mu: running mean of the gradients, a tree like the parameters; at least float32.
        nu: running mean of the squared gradients of the parameters that AdamW updates; shape `(0,)` for
            other parameters.
    """

    count: Count
    learning_rate: torch.Tensor
    adam_learning_rate: torch.Tensor
    mu: PyTree
    nu: PyTree


@algorithm
def muon(
    learning_rate: LearningRate = 1e-3,
    momentum: Hyperparameter = 0.95,
    *,
    nesterov: bool = True,
    weight_decay: Hyperparameter = 0.1,
    ns_steps: int = 5,
    ns_coefficients: Coefficients = QUINTIC,
    ns_dtype: torch.dtype | None = torch.bfloat16,
    eps: float = 1e-7,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original",
    orthogonal: Mask = matrices,
    adam_learning_rate: LearningRate | None = None,
    adam_b1: Hyperparameter = 0.9,
    adam_b2: Hyperparameter = 0.999,
    adam_eps: Hyperparameter = 1e-8,
    adam_weight_decay: Hyperparameter = 0.0,
) -> GradientTransformation:
    r"""Return Muon: momentum, orthogonalized so that all its singular values are about 1.

    For matrices

    $$u = -\eta (f O + \lambda p), \qquad m = \mu m + (1 - \mu) g$$

    where $O$ is the approximate orthogonal factor of $\mu m + (1 - \mu) g$ (of $m$ itself without
    `nesterov`) and $f$ compensates for the shape. A parameter of more than two dimensions is
    treated as `(first, all others)`, as is right for convolutions, but would mix the weights of layers
    that are stacked in one parameter.

    All other parameters are updated by `adamw`. Muon is meant for hidden layers: its authors train
    embeddings and output layers with AdamW too; exclude those with `orthogonal`.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        momentum: in [0, 1).
        nesterov: True for Nesterov's look-ahead.
        weight_decay: >= 0, multiplied by the learning rate; for the orthogonalized parameters.
        ns_steps: Newton-Schulz iterations, from 1 to 99.
        ns_coefficients: `(a, b, c)` of the iteration `X -> a X + b (X X') X + c (X X')^2 X`.
        ns_dtype: the dtype of these iterations; `None`: the dtype of the momentum.
        eps: a lower bound of the norm by which a matrix is divided.
        adjust_lr_fn: `"original"`: `f = sqrt(max(1, rows / columns))`; `"match_rms_adamw"`:
            `f = 0.2 sqrt(max(rows, columns))`, for learning rates that were tuned for AdamW.
        orthogonal: which parameters are orthogonalized; a tree of bools, or a function from parameters
            to one. Default: `optim.matrices`, all of two or more dimensions.
        adam_learning_rate: the learning rate of AdamW; default: `learning_rate`.
        adam_b1: AdamW's decay of the mean of gradients, in [0, 1).
        adam_b2: AdamW's decay of the mean of squares, in [0, 1).
        adam_eps: >= 0.
        adam_weight_decay: >= 0.

    Returns:
        A transformation with a `MuonState`. `update` needs `params`.

    Raises:
        ValueError: a hyper-parameter is out of range; a parameter without two dimensions is to be
            orthogonalized; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> from ftrain import optim
        >>> def hidden(params):  # as the authors advise
        ...     return {name: p.ndim == 2 and "embedding" not in name for name, p in params.items()}
        >>> optimizer = muon(0.02, orthogonal=hidden, adam_learning_rate=3e-4)
        >>> params = {"embedding.weight": torch.ones(5, 2), "layer.weight": torch.eye(2)}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(params, state, params)
        >>> state.nu["layer.weight"].shape, state.nu["embedding.weight"].shape
        (torch.Size([0]), torch.Size([5, 2]))

    References:
        Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein (2024), "Muon: An optimizer for hidden
        layers in neural networks"; `match_rms_adamw`: Liu, Su, et al. (2025), [Muon is Scalable for
        LLM Training](https://arxiv.org/abs/2502.16982).
    """
    check_learning_rate(learning_rate)
    _checks.fraction("momentum", momentum)
    _checks.non_negative("weight_decay", weight_decay)
    _check_newton_schulz(ns_steps, ns_coefficients)
    _checks.non_negative("eps", eps)
    adam_rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    check_learning_rate(adam_rate, "adam_learning_rate")
    _checks.fraction("adam_b1", adam_b1)
    _checks.fraction("adam_b2", adam_b2)
    _checks.non_negative("adam_eps", adam_eps)
    _checks.non_negative("adam_weight_decay", adam_weight_decay)
    if adjust_lr_fn not in ("original", "match_rms_adamw"):
        raise ValueError(
            f"adjust_lr_fn: expected 'original' or 'match_rms_adamw', got {adjust_lr_fn!r}. Write "
            "adjust_lr_fn='original'."
        )

    def init(params: PyTree) -> MuonState:
        leaves, treedef = parameters(params)
        chosen = _chosen(orthogonal, params)
        count = zero_count(first_device(leaves))
        squares = [
            torch.zeros(0, dtype=compute_dtype(p.dtype), device=p.device)
            if matrix
            else torch.zeros_like(p, dtype=compute_dtype(p.dtype))
            for p, matrix in zip(leaves, chosen, strict=True)
        ]
        return MuonState(
            count,
            rate_at(learning_rate, count).float(),
            rate_at(adam_rate, count).float(),
            zeros_like(params),
            tree.unflatten(treedef, squares),
        )

    def update(
        grads: PyTree, state: MuonState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, MuonState]:
        chosen = _chosen(orthogonal, params)
        rate, others = rate_at(learning_rate, state.count), rate_at(adam_rate, state.count)
        count = state.count + 1
        updates, mu, nu = each_leaf(
            rule,
            grads,
            params,
            {"mu": state.mu},
            mask=chosen,
            also=tree.leaves(state.nu),
            further=1,
            one_momentum=1 - momentum,
            momentum=momentum,
            rate=rate,
            shrink_by=rate * weight_decay,
            one_b1=1 - adam_b1,
            b2=adam_b2,
            one_b2=1 - adam_b2,
            correction=debias(adam_b2, count).sqrt(),
            adam_eps=adam_eps,
            adam_step=others / debias(adam_b1, count),
            adam_shrink=others * adam_weight_decay,
        )
        return updates, MuonState(count, rate.float(), others.float(), mu, nu)

    def rule(
        leaf: Leaf,
        one_momentum: Hyperparameter,
        momentum: Hyperparameter,
        rate: Hyperparameter,
        shrink_by: Hyperparameter,
        **adam: Hyperparameter,
    ) -> tuple[torch.Tensor, ...]:
        g, (m,), v = leaf.grad, leaf.memory, leaf.also
        p = leaf.param.to(g.dtype)
        if not leaf.masked:
            u, m, v = _adam_step(g, m, v, **adam)
            return -u - p * adam["adam_shrink"], m, v
        m = torch.lerp(m, g, one_momentum)
        ahead = torch.lerp(g, m, momentum) if nesterov else m
        wide = ahead.flatten(1)
        o = orthogonalize(wide, ns_steps, ns_coefficients, eps, ns_dtype).view(p.shape)
        u = o * (rate * _for_shape(wide, adjust_lr_fn))
        return -u - p * shrink_by, m, v.clone()

    return checked("muon", MuonState, init, update, needs_params=True)


def _adam_step(
    g: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    *,
    one_b1: Hyperparameter,
    b2: Hyperparameter,
    one_b2: Hyperparameter,
    correction: Hyperparameter,
    adam_eps: Hyperparameter,
    adam_step: Hyperparameter,
    adam_shrink: Hyperparameter,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return Adam's step, which the caller subtracts, and the new moments."""
    m = torch.lerp(m, g, one_b1)
    new_v = like(torch.addcmul(v * b2, g * one_b2, g), v)
    return m * adam_step / (safe_sqrt(new_v) / correction + adam_eps), m, new_v


def orthogonalize(
    matrix: torch.Tensor,
    ns_steps: int = 5,
    ns_coefficients: Coefficients = QUINTIC,
    eps: float = 1e-7,
    ns_dtype: torch.dtype | None = torch.bfloat16,
) -> torch.Tensor:
    r"""Return approximately the orthogonal factor $U V^\top$ of $U S V^\top$, by matrix products alone.

    $$X = \frac{M}{\lVert M \rVert_F}, \qquad X = a X + b (X X^\top) X + c (X X^\top)^2 X$$

    repeated `ns_steps` times. With the default coefficients the singular values end up between 0.7
    and 1.2, not at 1, which does not hurt training.

    Args:
        matrix: floating, `(rows, columns)`.
        ns_steps: iterations.
        ns_coefficients: `(a, b, c)`.
        eps: a lower bound of the norm by which the matrix is divided.
        ns_dtype: the dtype of the computation; `None`: that of the matrix.

    Returns:
        A matrix of the same shape and dtype.

    Example:
        >>> orthogonalize(torch.diag(torch.tensor([3.0, 4.0]))).diag().round()
        tensor([1., 1.])
    """
    a, b, c = ns_coefficients
    x = matrix if ns_dtype is None else matrix.to(ns_dtype)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.mT
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrix.dtype)


def _chosen(orthogonal: Mask, params: PyTree) -> list[bool]:
    chosen = mask_leaves(orthogonal, params)
    for index, (p, matrix) in enumerate(zip(tree.leaves(params), chosen, strict=True)):
        if matrix and p.ndim < 2:
            path = tree.paths(params)[index] or "the root"
            raise ValueError(
                f"`orthogonal`: expected only matrices, got True at {path}, a parameter of shape "
                f"{tuple(p.shape)}. Pass `optim.matrices`, which leaves vectors and scalars out."
            )
    return chosen


def _for_shape(matrix: torch.Tensor, adjust_lr_fn: str) -> float:
    rows, columns = matrix.shape
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / max(columns, 1)))


def _check_newton_schulz(ns_steps: int, ns_coefficients: Coefficients) -> None:
    _checks.positive_int("ns_steps", ns_steps)
    if ns_steps >= 100:
        raise ValueError(f"ns_steps: expected less than 100, got {ns_steps}. Write ns_steps=5.")
    if len(ns_coefficients) != 3:
        raise ValueError(
            f"ns_coefficients: expected three numbers (a, b, c), got {ns_coefficients!r}. Leave it out."
        )
