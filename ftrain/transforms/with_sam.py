"""Sharpness-aware gradients: gradients at a nearby point where the loss is larger."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.gradients import GradientResult
from ftrain.core.metrics import Metrics, Sum
from ftrain.core.norm import global_norm
from ftrain.core.optimizer import apply_updates
from ftrain.core.state import TrainState
from ftrain.optim import _checks
from ftrain.optim._leaves import compute_dtype
from ftrain.optim.protocol import Hyperparameter
from ftrain.transforms.from_gradients import Gradients

__all__ = ["with_sam"]

_TINY = 1e-12  # keeps a zero gradient from dividing by zero, as in the paper's code


def with_sam(gradients: Gradients, rho: Hyperparameter = 0.05) -> Gradients:
    r"""Return a gradient function that first moves the parameters by $\rho \, g / \lVert g \rVert$.

    This is sharpness-aware minimization (SAM); $g$ is the gradient at the original parameters $p$. Both
    gradients are computed on the same batch, with the same random draws and buffers. Metrics and
    buffers of the result are those at $p$. A step is skipped if either gradient is not finite.
    `optim.sam` does the same as an optimizer: it computes the second gradient itself, and checks the
    first one only.

    Args:
        gradients: `(state, batch) -> GradientResult`.
        rho: the distance of the two points, a finite number >= 0.

    Returns:
        A function with the arguments and results of `gradients`.

    Raises:
        ValueError: `rho` is out of its range.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> steps = ftrain.make_steps(
        ...     lambda: torch.nn.Linear(3, 1), lambda m, x: m(x).square().mean(), optim.sgd(0.1)
        ... )
        >>> state, batch = steps.init_state(0), torch.ones(4, 3)
        >>> plain, sam = steps.train_step.gradients, with_sam(steps.train_step.gradients, 1.0)
        >>> bool(global_norm(sam(state, batch).grads) > global_norm(plain(state, batch).grads))
        True

    References:
        Foret, Kleiner, Mobahi, Neyshabur (2021), [Sharpness-Aware Minimization for Efficiently Improving
        Generalization](https://arxiv.org/abs/2010.01412).
    """
    _checks.non_negative("rho", rho)

    def sharpness_aware(state: TrainState, batch: Any) -> GradientResult:
        first = gradients(state, batch)
        length = rho / (global_norm(first.grads) + _TINY)

        def climb(g: torch.Tensor) -> torch.Tensor:
            wide = compute_dtype(g.dtype)
            return g.to(wide) * length.to(g.device, wide)

        worst = apply_updates(state.params, tree.map(climb, first.grads))
        second = gradients(state.replace(params=worst), batch)
        if first.finite is None or second.finite is None:
            return first._replace(grads=second.grads)
        finite, is_second = first.finite & second.finite, second.finite
        skipped = Sum(torch.logical_not(finite).to(torch.int64))
        return first._replace(
            grads=second.grads,
            finite=finite,
            # An overflow of either gradient lowers the loss scale; two finite ones count as one step.
            scaler=tree.map(lambda a, b: torch.where(is_second, a, b), first.scaler, second.scaler),
            metrics=Metrics({**first.metrics.entries, "skipped": skipped}),
        )

    return sharpness_aware
