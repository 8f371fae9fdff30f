"""Wrappers that skip an update if its gradients are non-finite or too large, for custom steps.

The steps of `make_steps` skip in `core/commit.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.norm import GlobalNorm, finite_norm
from ftrain.core.optimizer import like
from ftrain.optim import _checks
from ftrain.optim._checked import checked
from ftrain.optim._leaves import first_device, gradients, parameters
from ftrain.optim._partial_trees import unchanged
from ftrain.optim._rate import zero_count
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = ["SkipState", "skip_large_updates", "skip_nonfinite"]


class SkipState(NamedTuple):
    """State of `skip_nonfinite` and `skip_large_updates`.

    Attributes:
        skipped: int64, 0-d. Number of updates skipped so far.
        inner: the state of the wrapped optimizer, which skipped updates do not change.
    """

    skipped: torch.Tensor
    inner: PyTree


def skip_nonfinite(inner: GradientTransformation) -> GradientTransformation:
    """Wrap an optimizer so that it skips an update if any gradient is non-finite.

    Parameters and the state of `inner` are unchanged, bit for bit, if any gradient is infinite or NaN.
    This is the criterion of `make_steps(nonfinite="skip")`, for custom loops and for gradients that an
    earlier transformation of a chain has changed.

    Args:
        inner: the optimizer.

    Returns:
        A transformation with a `SkipState`.

    Example:
        >>> from ftrain import optim
        >>> optimizer = skip_nonfinite(optim.sgd(0.1))
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> grads = {"w": torch.tensor([1.0, torch.inf])}
        >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
        >>> optim.apply_updates(params, updates), state.skipped, state.inner.count
        ({'w': tensor([1., 2.])}, tensor(1), tensor(0))
    """
    _checks.optimizer("skip_nonfinite", inner)
    return _skip("skip_nonfinite", inner, lambda norm: norm.finite)


def skip_large_updates(
    inner: GradientTransformation, max_norm: Hyperparameter
) -> GradientTransformation:
    """Wrap an optimizer so that it skips an update if the global gradient norm exceeds `max_norm`.

    An update whose norm is NaN is skipped too. A skipped update keeps the bits of the parameters and of
    the state of `inner`.

    Args:
        inner: the optimizer.
        max_norm: a number >= 0 or a 0-d tensor, in units of the gradient; with infinity, only NaN is
            skipped.

    Returns:
        A transformation with a `SkipState`.

    Example:
        >>> from ftrain import optim
        >>> optimizer = skip_large_updates(optim.sgd(0.1), 4.0)
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> optim.apply_updates(params, updates), state.skipped
        ({'w': tensor([3., 4.])}, tensor(1))
    """
    _checks.optimizer("skip_large_updates", inner)
    _checks.at_least_zero("max_norm", max_norm)
    return _skip("skip_large_updates", inner, lambda norm: norm.value <= max_norm)


def _skip(
    name: str, inner: GradientTransformation, applies: Callable[[GlobalNorm], torch.Tensor]
) -> GradientTransformation:
    def init(params: PyTree) -> SkipState:
        leaves, _ = parameters(params)
        return SkipState(zero_count(first_device(leaves)), inner.init(params))

    def update(
        grads: PyTree, state: SkipState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SkipState]:
        gradients(grads)
        # The same expression as the step's `grad_norm`, so that a compiled step evaluates it once.
        good = applies(finite_norm(grads)).to(state.skipped.device)
        updates, new = inner.update(grads, state.inner, params, **extra)
        return (
            tree.map(lambda u: torch.where(good.to(u.device), u, unchanged(u)), updates),
            SkipState(state.skipped + ~good, tree.map(chosen(good), new, state.inner)),
        )

    return checked(name, SkipState, init, update)


def chosen(condition: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return a function that selects the new leaf if the condition holds, else the old one."""

    def choose(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        return like(torch.where(condition.to(new.device), new, old), old)

    return choose
