"""Calibration error: the difference between a model's confidence and its accuracy.

Read next: `counts.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ftrain.tasks._weighted import over

__all__ = ["CalibrationError", "calibration_error"]


class CalibrationError(NamedTuple):
    r"""Expected calibration error over bins of confidence.

    $$\sum_b |\mathrm{confidence}_b - \mathrm{hits}_b| / \sum_b \mathrm{weight}_b$$

    Attributes:
        weight: `(bins,)`: the total weight of the labels in each bin of confidence.
        confidence: `(bins,)`: the weighted sum of the confidences in each bin.
        hits: `(bins,)`: the total weight of the correctly predicted labels in each bin.
    """

    weight: Tensor
    confidence: Tensor
    hits: Tensor

    @property
    def value(self) -> Tensor:
        """Return the error, between 0 and 1; NaN if the total weight is 0."""
        return (self.confidence - self.hits).abs().sum(-1) / self.weight.sum(-1)

    def merge(self, other: CalibrationError) -> CalibrationError:
        """Return the metric over the data of both `self` and `other`."""
        return type(self)(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def calibration_error(
    logits: Tensor,
    labels: Tensor,
    *,
    bins: int = 15,
    class_axis: int = -1,
    ignore_index: int = -100,
    row_weights: Tensor | None = None,
) -> CalibrationError:
    """Return the expected calibration error of the predicted classes (arXiv 1706.04599).

    The confidence is the largest probability; bin `b` of `B` has the confidences above `b / B` and up to
    `(b + 1) / B`.

    Args:
        logits: floating point, with an axis of classes, the last by default.
        labels: integers, the shape of `logits` without the axis of classes.
        bins: the number of bins, positive.
        class_axis: the axis of classes.
        ignore_index: labels that are ignored.
        row_weights: the weights of rows, or of all labels.

    Raises:
        ValueError: the shapes do not fit, or `bins` is not positive.

    Example:
        >>> calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])).value
        tensor(0.2500)
    """
    if bins < 1:
        raise ValueError(f"bins: expected a positive number, got {bins}. Write bins=15.")
    confidence, found = logits.detach().softmax(class_axis).max(class_axis)
    if found.shape != labels.shape:
        raise ValueError(
            f"labels: expected classes of shape {tuple(found.shape)} for logits of shape "
            f"{tuple(logits.shape)}, got {tuple(labels.shape)}. Reshape the one that differs."
        )
    weight = (labels != ignore_index).to(confidence.dtype)
    if row_weights is not None:
        weight = weight * over(row_weights, weight)
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1).flatten()
    empty = torch.zeros(bins, dtype=weight.dtype, device=weight.device)

    def total(values: Tensor) -> Tensor:
        return empty.scatter_add(0, place, values.flatten())

    return CalibrationError(
        total(weight), total(weight * confidence), total(weight * (found == labels))
    )
