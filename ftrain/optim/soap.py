"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.cond import apply_if
from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked, other_options
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

__all__ = ["SOAPState", "soap"]

SHIFT = 1e-3  # times the mean eigenvalue; a small GPT learns equally well with 1e-6
Moments = tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]
Side = torch.Tensor | None  # eigenbasis of the rows or columns of a matrix; None if not rotated


class SOAPState(NamedTuple):
    """State of `soap`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        mu: running mean of the gradients in the eigenbases, a tree like the parameters; at least
            float32.
        nu: running mean of the squared gradients in the eigenbases; a tree like `mu`.
        grams: for each preconditioned side of each parameter, the running mean of `G G'` (rows) or
            `G' G` (columns): a tuple of square matrices, in the order of the parameters' leaves.
        bases: for each matrix in `grams`, its eigenvectors as columns, in order of descending
            eigenvalue.
    """

    count: Count
    learning_rate: torch.Tensor
    mu: PyTree
    nu: PyTree
    grams: tuple[torch.Tensor, ...]
    bases: tuple[torch.Tensor, ...]


@algorithm
def soap(
    learning_rate: LearningRate = 3e-3,
    b1: Hyperparameter = 0.95,
    b2: Hyperparameter = 0.95,
    eps: Hyperparameter = 1e-8,
    *,
    weight_decay: Hyperparameter = 0.01,
    b3: Hyperparameter | None = None,
    precondition_frequency: int = 10,
    max_precondition_dim: int = 10_000,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    $$u = -\eta (Q_L N Q_R^\top + \lambda p), \qquad
    N = \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}$$

    where $m$ and $v$ are Adam's moments of $Q_L^\top G Q_R$, and the columns of $Q_L$, $Q_R$ are
    the eigenvectors of $L = \beta_3 L + (1 - \beta_3) G G^\top$ and $R = \beta_3 R + (1 - \beta_3)
    G^\top G$.

    The eigenvectors are updated by one step of orthogonal iteration, $Q = \mathrm{qr}(L Q)$, every
    `precondition_frequency` updates, and at each of the first `precondition_frequency` updates. They
    start as the identity, with which SOAP is Adam. There is no eigendecomposition, which would fail on a
    non-finite gradient. Vectors and scalars are updated by Adam; a parameter of more than two dimensions
    is treated as `(first, all others)`.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: >= 0, added to the square root of the bias-corrected `v`.
        weight_decay: >= 0, multiplied by the learning rate.
        b3: decay of `L` and `R`, in [0, 1). Default: `b2`.
        precondition_frequency: the number of updates from one computation of the eigenvectors to the
            next, >= 1. In a compiled step the updates between them skip this computation; under
            `torch.vmap` they do not.
        max_precondition_dim: a dimension longer than this is not rotated (a vocabulary, for instance).
        mask: which parameters decay; a tree of bools, a function of the parameters, or None for all.
            Default: `optim.matrices`, no decay on vectors and scalars.

    Returns:
        A transformation with a `SOAPState`. `update` needs `params`.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = soap(0.1)
        >>> params = {"w": torch.tensor([[1.0, -2.0], [0.0, 3.0]]), "b": torch.zeros(3)}
        >>> state = optimizer.init(params)
        >>> [tuple(basis.shape) for basis in state.bases]
        [(2, 2), (2, 2)]
        >>> updates, state = optimizer.update(params, state, params)
        >>> bool((updates["w"] * params["w"]).sum() < 0)
        True

    References:
        Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade (2024), [SOAP: Improving
        and Stabilizing Shampoo using Adam](https://arxiv.org/abs/2409.11321).
    """
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    decay = b2 if b3 is None else b3
    _checks.fraction("b3", decay)
    _checks.non_negative("eps", eps)
    _checks.non_negative("weight_decay", weight_decay)
    _checks.positive_int("precondition_frequency", precondition_frequency)
    _checks.positive_int("max_precondition_dim", max_precondition_dim)

    def init(params: PyTree) -> SOAPState:
        leaves, _ = parameters(params)
        mask_leaves(mask, params)
        count = zero_count(first_device(leaves))
        bases = [
            torch.eye(side, dtype=compute_dtype(p.dtype), device=p.device)
            for p in leaves
            for side in _sides(p, max_precondition_dim)
            if side is not None
        ]
        return SOAPState(
            count,
            rate_at(learning_rate, count).float(),
            zeros_like(params),
            zeros_like(params),
            tuple(torch.zeros_like(basis) for basis in bases),
            tuple(bases),
        )

    def update(
        grads: PyTree, state: SOAPState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SOAPState]:
        places = _places(tree.leaves(params), max_precondition_dim, len(state.bases))
        rate = rate_at(learning_rate, state.count)
        count = state.count + 1
        grams = list(state.grams)

        def rule(
            leaf: Leaf,
            one_b1: Hyperparameter,
            b2: Hyperparameter,
            one_b2: Hyperparameter,
            correction: Hyperparameter,
            eps: Hyperparameter,
            step: Hyperparameter,
            one_b3: Hyperparameter,
        ) -> tuple[torch.Tensor, ...]:
            g, (m, v), (left, right) = leaf.grad, leaf.memory, leaf.also
            basis = _at(state.bases, left), _at(state.bases, right)
            turned = _turned(g, *basis)
            m = torch.lerp(m, turned, one_b1)
            v = torch.addcmul(v * b2, turned * one_b2, turned)
            u = _turned_back(m * step / (safe_sqrt(v) / correction + eps), *basis)
            # The bases are updated after the step, so that they do not depend on the gradient that they
            # rotate.
            wide = g.flatten(1) if g.ndim > 1 else g
            if left is not None:
                grams[left] = torch.lerp(grams[left], wide @ wide.mT, one_b3)
            if right is not None:
                grams[right] = torch.lerp(grams[right], wide.mT @ wide, one_b3)
            return u, m, v

        updates, mu_tree, nu_tree = each_leaf(
            rule,
            grads,
            params,
            {"mu": state.mu, "nu": state.nu},
            mask=mask_leaves(mask, params),
            shrink=rate * weight_decay,
            also=places,
            one_b1=1 - b1,
            b2=b2,
            one_b2=1 - b2,
            correction=debias(b2, count).sqrt(),
            eps=eps,
            step=-rate / debias(b1, count),
            one_b3=1 - decay,
        )
        mu, nu = tree.leaves(mu_tree), tree.leaves(nu_tree)
        treedef = tree.structure(params)
        matters = [index for index, place in enumerate(places) if place != (None, None)]

        def refreshed(old: Moments) -> Moments:
            return _refreshed([places[index] for index in matters], grams, *old)

        due = (state.count % precondition_frequency == 0) | (state.count < precondition_frequency)
        old = [mu[index] for index in matters], [nu[index] for index in matters], list(state.bases)
        means, squares, bases = apply_if(due, refreshed, old)
        for index, m, v in zip(matters, means, squares, strict=True):
            mu[index], nu[index] = m, v
        new = SOAPState(
            count,
            rate.float(),
            tree.unflatten(treedef, mu),
            tree.unflatten(treedef, nu),
            tuple(grams),
            tuple(bases),
        )
        return updates, new

    return checked("soap", SOAPState, init, update, needs_params=True)


def _refreshed(
    places: list[tuple[int | None, int | None]],
    grams: list[torch.Tensor],
    mu: list[torch.Tensor],
    nu: list[torch.Tensor],
    bases: list[torch.Tensor],
) -> Moments:
    """Update the eigenbases by one orthogonal iteration; return moments in the new bases, and the bases.

    The mean of gradients is rotated. The mean of squares cannot be rotated; it is only permuted like the
    columns of the bases.
    """
    new = list(bases)
    means, squares = [], []
    for m, v, (left, right) in zip(mu, nu, places, strict=True):
        plain = _turned_back(m, _at(bases, left), _at(bases, right))
        wide = v.flatten(1)
        if left is not None:
            new[left], order = _iterated(grams[left], bases[left])
            wide = wide.index_select(0, order)
        if right is not None:
            new[right], order = _iterated(grams[right], bases[right])
            wide = wide.index_select(1, order)
        means.append(_turned(plain, _at(new, left), _at(new, right)))
        squares.append(wide.view(v.shape))
    return means, squares, new


def _iterated(gram: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `Q` of `qr(gram @ basis)`, sorted by descending eigenvalue, and the column permutation.

    Adding a multiple of the identity (`SHIFT`) does not change the eigenvectors. It keeps directions
    without any gradient so far in place, which would otherwise consist of rounding noise. The last line
    flips signs so that columns rotate as little as possible.
    """
    image = gram @ basis
    order = (basis * image).sum(0).argsort(descending=True, stable=True)
    image = image + SHIFT * gram.diagonal().mean() * basis
    q, r = torch.linalg.qr(image.index_select(1, order))
    return torch.where(r.diagonal() < 0, -q, q), order


def _sides(p: torch.Tensor, longest: int) -> tuple[int | None, int | None]:
    """Return the row and column count of a parameter as a matrix; `None` for a side above `longest`."""
    if p.ndim < 2:
        return None, None
    rows, columns = p.shape[0], math.prod(p.shape[1:])
    return rows if rows <= longest else None, columns if columns <= longest else None


def _places(
    ps: list[torch.Tensor], longest: int, bases: int
) -> list[tuple[int | None, int | None]]:
    """Return the indices in `state.bases` of each parameter's row basis and column basis.

    The index is `None` for a side without a basis.
    """
    places, taken = [], 0
    for p in ps:
        pair: list[int | None] = []
        for side in _sides(p, longest):
            pair.append(None if side is None else taken)
            taken += side is not None
        places.append((pair[0], pair[1]))
    if taken != bases:
        raise other_options("soap", f"{bases} bases instead of {taken}")
    return places


def _at(bases: Any, place: int | None) -> Side:
    return None if place is None else bases[place]


def _turned(x: torch.Tensor, left: Side, right: Side) -> torch.Tensor:
    """Rotate `X` into the eigenbasis: return `Q_L' X Q_R`."""
    return _between(None if left is None else left.mT, x, right)


def _turned_back(x: torch.Tensor, left: Side, right: Side) -> torch.Tensor:
    """Rotate `X` out of the eigenbasis: return `Q_L X Q_R'`."""
    return _between(left, x, None if right is None else right.mT)


def _between(left: Side, x: torch.Tensor, right: Side) -> torch.Tensor:
    if left is None and right is None:
        return x
    wide = x.flatten(1)
    wide = wide if left is None else left @ wide
    wide = wide if right is None else wide @ right
    return wide.reshape(x.shape)
