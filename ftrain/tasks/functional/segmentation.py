"""Segmentation losses, for one class per pixel; see also `cross_entropy(class_axis=1)`.

The Dice, Tversky and Lovász losses are computed for each image and each class in its labels, from sums
over the image's pixels, and then averaged, so that the mean over any batches is exact.

Read next: `classification.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ftrain.core.metrics import Mean
from ftrain.tasks._weighted import classes_in_range, one_hot, weighted

__all__ = ["dice", "focal", "lovasz", "tversky"]


def focal(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
    ignore_index: int = -100,
    row_weights: Tensor | None = None,
) -> Mean:
    r"""Return the mean focal loss, $-c_y (1 - p_y)^\gamma \log p_y$, over labels (arXiv 1708.02002).

    Args:
        logits: `(n, classes, ...)`.
        labels: int64 `(n, ...)`.
        gamma: 0 or more; 0 gives the cross-entropy.
        class_weights: `(classes,)`: the factor $c$, which does not change the weight in the mean.
        ignore_index: labels that are ignored.
        row_weights: `(n,)`, or a weight for each label.

    Raises:
        ValueError: the shapes do not fit; on a CPU, a label is out of range.

    Example:
        >>> focal(torch.zeros(1, 2, 3), torch.zeros(1, 3).long()).value
        tensor(0.1733)
    """
    _check(logits, labels)
    counts = labels != ignore_index
    known = labels.where(counts, 0)
    with classes_in_range(labels, logits.shape[1], ignore_index):
        log_p = logits.log_softmax(1).gather(1, known.unsqueeze(1)).squeeze(1)
    # -expm1 computes 1 - p without cancellation; the clamp avoids the non-finite gradient of a power of
    # 0 at p = 1.
    rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    values = -rest.pow(gamma) * log_p
    if class_weights is not None:
        values = values * class_weights[known]
    return weighted(values, counts, row_weights)


def dice(
    logits: Tensor,
    labels: Tensor,
    *,
    smooth: float = 0.0,
    ignore_index: int = -100,
    row_weights: Tensor | None = None,
) -> Mean:
    r"""Return the Dice loss, averaged over images and the classes in their labels (arXiv 1606.04797).

    $$1 - \frac{2 \sum p t + s}{\sum p + \sum t + s}$$

    Args:
        logits: `(n, classes, ...)`; two or more classes.
        labels: int64 `(n, ...)`.
        smooth: the term $s$.
        ignore_index: labels of pixels that do not count.
        row_weights: `(n,)`.

    Raises:
        ValueError: the shapes do not fit; on a CPU, a label is out of range.

    Example:
        >>> dice(torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]]), torch.tensor([[0, 1]])).value < 1e-6
        tensor(True)
    """
    return tversky(
        logits,
        labels,
        false_positives=0.5,
        false_negatives=0.5,
        smooth=smooth / 2,
        ignore_index=ignore_index,
        row_weights=row_weights,
    )


def tversky(
    logits: Tensor,
    labels: Tensor,
    *,
    false_positives: float = 0.3,
    false_negatives: float = 0.7,
    smooth: float = 0.0,
    ignore_index: int = -100,
    row_weights: Tensor | None = None,
) -> Mean:
    r"""Return the Tversky loss, averaged over images and the classes in their labels (arXiv 1706.05721).

    $$1 - \frac{TP + s}{TP + \alpha FP + \beta FN + s}, \quad TP = \sum p t, \ FP = \sum p (1 - t),
    \ FN = \sum (1 - p) t$$

    Args:
        logits: `(n, classes, ...)`; two or more classes.
        labels: int64 `(n, ...)`.
        false_positives: the factor $\alpha$.
        false_negatives: the factor $\beta$, positive.
        smooth: the term $s$.
        ignore_index: labels of pixels that do not count.
        row_weights: `(n,)`.

    Raises:
        ValueError: the shapes do not fit; `false_negatives` is not positive.

    Example:
        >>> tversky(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 1, 1]])).value
        tensor(0.5000)
    """
    if false_negatives <= 0:
        raise ValueError(
            f"false_negatives: expected a positive factor, got {false_negatives}. Write "
            "false_negatives=0.7."
        )
    p, truth, counts = _pixels(logits, labels, ignore_index)
    p = p * counts
    hits = (p * truth).sum(-1)
    wrong = false_positives * (p.sum(-1) - hits)
    missed = false_negatives * (truth.sum(-1) - hits)
    # A class that is not in the labels has weight 0; a denominator of 1 keeps its ratio finite.
    absent = ~truth.any(-1)
    ratio = (hits + smooth) / (hits + wrong + missed + smooth).where(~absent, 1.0)
    return _over_classes(1 - ratio, truth, row_weights)


def lovasz(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    row_weights: Tensor | None = None,
) -> Mean:
    """Return the Lovász-softmax loss, averaged over images and the classes in their labels.

    The loss is the convex extension of one minus the intersection over union (arXiv 1705.08790).

    Args:
        logits: `(n, classes, ...)`; two or more classes.
        labels: int64 `(n, ...)`.
        ignore_index: labels of pixels that do not count.
        row_weights: `(n,)`.

    Raises:
        ValueError: the shapes do not fit; on a CPU, a label is out of range.

    Example:
        >>> lovasz(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 1, 1]])).value
        tensor(0.5000)
    """
    p, truth, counts = _pixels(logits, labels, ignore_index)
    # Ignored pixels have error 0: they are sorted last, where they add 0.
    errors = (truth.to(p.dtype) - p).abs() * counts
    errors, order = torch.sort(errors, dim=-1, descending=True, stable=True)
    ordered = truth.gather(-1, order).to(p.dtype)
    total = ordered.sum(-1, keepdim=True)
    intersection = total - ordered.cumsum(-1)
    union = total + (1 - ordered).cumsum(-1)
    jaccard = 1 - intersection / union
    steps = torch.cat([jaccard[..., :1], jaccard[..., 1:] - jaccard[..., :-1]], -1)
    return _over_classes((errors * steps).sum(-1), truth, row_weights)


def _pixels(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities and one-hot labels, `(n, classes, pixels)`, and a mask of valid pixels."""
    _check(logits, labels)
    truth = one_hot(labels, logits.shape[1], ignore_index).flatten(1, -2).transpose(1, 2)
    counts = (labels != ignore_index).flatten(1).unsqueeze(1)
    return logits.flatten(2).softmax(1), truth, counts


def _over_classes(values: Tensor, truth: Tensor, row_weights: Tensor | None) -> Mean:
    """Return the mean of values `(n, classes)` over images and the classes in their labels."""
    if row_weights is not None and row_weights.ndim != 1:
        raise ValueError(
            f"row_weights: expected one weight for each image, ({len(values)},), got "
            f"{tuple(row_weights.shape)}. Set the labels of single pixels to ignore_index instead."
        )
    return weighted(values, truth.any(-1), row_weights)


def _check(logits: Tensor, labels: Tensor) -> None:
    expected = (*logits.shape[:1], *logits.shape[2:])
    if logits.ndim < 3 or logits.shape[1] < 2 or labels.shape != expected:
        raise ValueError(
            f"logits: expected (n, classes, ...) of two or more classes and labels (n, ...), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}. For one class, add a channel of zeros "
            "for the background."
        )
