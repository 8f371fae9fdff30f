"""Gradients with normal noise whose variance decays over training."""

from __future__ import annotations

from typing import Any

from ftrain.core import random, tree
from ftrain.core.gradients import GradientResult
from ftrain.core.state import TrainState
from ftrain.optim import _checks
from ftrain.optim._leaves import compute_dtype
from ftrain.optim._rate import double
from ftrain.optim.protocol import Hyperparameter
from ftrain.transforms.from_gradients import Gradients

__all__ = ["with_gradient_noise"]

# The state's key is split into rows 0 and 1: the next key and that of the model.
_STREAM = 0x6E6F6973


def with_gradient_noise(
    gradients: Gradients, eta: Hyperparameter = 0.3, gamma: Hyperparameter = 0.55
) -> Gradients:
    r"""Return a gradient function that adds noise of decaying variance, drawn from the state's key.

    $$g + n, \qquad n \sim N\left(0, \frac{\eta}{(1 + t)^\gamma}\right)$$

    with $t$ the number of updates applied so far. `optim.add_noise` does the same as part of an
    optimizer, with a key of its own.

    Args:
        gradients: `(state, batch) -> GradientResult`.
        eta: the variance at the first step, a finite number >= 0; the paper tries 0.01, 0.3 and 1.
        gamma: the exponent of the decay, a finite number >= 0.

    Returns:
        A function with the arguments and results of `gradients`.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> import ftrain, torch
        >>> from ftrain import optim
        >>> steps = ftrain.make_steps(
        ...     lambda: torch.nn.Linear(3, 1), lambda m, x: m(x).square().mean(), optim.sgd(0.1)
        ... )
        >>> noisy = with_gradient_noise(steps.train_step.gradients, 0.01)
        >>> state, batch = steps.init_state(0), torch.ones(4, 3)
        >>> first, second = noisy(state, batch), noisy(state, batch)
        >>> torch.equal(first.grads["weight"], second.grads["weight"])
        True

    References:
        Neelakantan et al. (2015), [Adding Gradient Noise Improves Learning for Very Deep
        Networks](https://arxiv.org/abs/1511.06807).
    """
    _checks.non_negative("eta", eta)
    _checks.non_negative("gamma", gamma)

    def noisy(state: TrainState, batch: Any) -> GradientResult:
        result = gradients(state, batch)
        count = (state.step + 1).double()
        deviation = (eta / count ** double(gamma, count.device)).sqrt()
        leaves, treedef = tree.flatten(result.grads)
        for i, g in enumerate(leaves):
            dtype = compute_dtype(g.dtype)
            noise = random.normal(state.rng, g.shape, dtype, folds=(_STREAM, i))
            leaves[i] = (g.to(dtype) + noise * deviation.to(dtype)).to(g.dtype)
        return result._replace(grads=tree.unflatten(treedef, leaves))

    return noisy
