"""Regression losses.

Read next: `classification.py`.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ftrain.core.metrics import Mean
from ftrain.tasks._weighted import weighted

__all__ = ["gaussian_nll", "huber", "mae", "mse"]


def mse(predictions: Tensor, targets: Tensor, *, row_weights: Tensor | None = None) -> Mean:
    """Return the mean squared error.

    Args:
        predictions: any shape.
        targets: the same shape.
        row_weights: the weights of rows, or of all values.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).value
        tensor(2.)
    """
    _check(predictions, targets)
    return weighted(F.mse_loss(predictions, targets, reduction="none"), row_weights)


def mae(predictions: Tensor, targets: Tensor, *, row_weights: Tensor | None = None) -> Mean:
    """Return the mean absolute error.

    Args:
        predictions: any shape.
        targets: the same shape.
        row_weights: the weights of rows, or of all values.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> mae(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).value
        tensor(1.)
    """
    _check(predictions, targets)
    return weighted(F.l1_loss(predictions, targets, reduction="none"), row_weights)


def huber(
    predictions: Tensor, targets: Tensor, *, delta: float = 1.0, row_weights: Tensor | None = None
) -> Mean:
    r"""Return the mean Huber loss.

    $e^2 / 2$ for errors $e$ up to $\delta$, $\delta (|e| - \delta / 2)$ above.

    Args:
        predictions: any shape.
        targets: the same shape.
        delta: positive, in the units of the targets.
        row_weights: the weights of rows, or of all values.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> huber(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 4.0])).value
        tensor(0.8125)
    """
    _check(predictions, targets)
    return weighted(F.huber_loss(predictions, targets, reduction="none", delta=delta), row_weights)


def gaussian_nll(
    means: Tensor,
    log_variances: Tensor,
    targets: Tensor,
    *,
    row_weights: Tensor | None = None,
) -> Mean:
    r"""Return the mean negative log-likelihood of normal distributions, in nats.

    $$\tfrac{1}{2} \left( \log 2 \pi + s + (y - \mu)^2 e^{-s} \right), \quad s = \log \sigma^2$$

    With the logarithm as output, a variance is never zero or negative.

    Args:
        means: any shape.
        log_variances: the same shape.
        targets: the same shape.
        row_weights: the weights of rows, or of all values.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> gaussian_nll(torch.zeros(2), torch.zeros(2), torch.zeros(2)).value
        tensor(0.9189)
    """
    _check(means, targets)
    _check(log_variances, targets)
    squares = (targets - means).square() * (-log_variances).exp()
    return weighted(0.5 * (math.log(2 * math.pi) + log_variances + squares), row_weights)


def _check(predictions: Tensor, targets: Tensor) -> None:
    """Raise if two shapes differ: (n, 1) and (n,) would broadcast to n² errors."""
    if predictions.shape != targets.shape:
        raise ValueError(
            f"predictions: expected the shape of the targets, {tuple(targets.shape)}, got "
            f"{tuple(predictions.shape)}. Reshape the one that differs."
        )
