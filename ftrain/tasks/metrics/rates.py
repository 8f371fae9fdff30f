"""Accuracies of classifiers, and ranking metrics of retrieval.

Read next: `counts.py`, for scores that are not means over rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ftrain.core.metrics import Mean
from ftrain.tasks._weighted import one_hot, weighted

__all__ = ["accuracy", "mean_reciprocal_rank", "recall_at_k", "top_k_accuracy"]


def accuracy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_axis: int = -1,
    ignore_index: int = -100,
    row_weights: Tensor | None = None,
) -> Mean:
    """Return the share of labels whose class has the largest logit.

    Args:
        logits: floating point, with an axis of classes, the last by default. Of equal logits, the first
            one is the prediction.
        labels: integers, the shape of `logits` without the axis of classes.
        class_axis: the axis of classes: 1 for images `(n, classes, height, width)`.
        ignore_index: labels that are ignored.
        row_weights: the weights of rows, or of all labels.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> accuracy(torch.eye(3), torch.tensor([0, 2, -100])).value
        tensor(0.5000)
    """
    found = logits.argmax(class_axis)
    if found.shape != labels.shape:
        raise ValueError(
            f"labels: expected classes of shape {tuple(found.shape)} for logits of shape "
            f"{tuple(logits.shape)}, got {tuple(labels.shape)}. Reshape the one that differs."
        )
    hits = found == labels
    return weighted(hits, labels != ignore_index, row_weights)


def top_k_accuracy(
    logits: Tensor,
    labels: Tensor,
    *,
    k: int = 5,
    ignore_index: int = -100,
    row_weights: Tensor | None = None,
) -> Mean:
    """Return the share of labels whose class is among the `k` largest logits.

    Args:
        logits: `(..., classes)`. Equal logits are ranked by position.
        labels: integers `(...)`.
        k: positive.
        ignore_index: labels that are ignored.
        row_weights: the weights of rows, or of all labels.

    Raises:
        ValueError: the shapes do not fit, or `k` is not positive; on a CPU, a label is out of range.

    Example:
        >>> top_k_accuracy(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1]), k=2).value
        tensor(1.)
    """
    hits = _ranked(logits, _relevant(logits, labels, ignore_index))[..., : _positive(k)].any(-1)
    return weighted(hits, labels != ignore_index, row_weights)


def recall_at_k(
    scores: Tensor, relevant: Tensor, *, k: int, row_weights: Tensor | None = None
) -> Mean:
    """Return recall at `k`: the mean share of each query's relevant documents ranked in the first `k`.

    Args:
        scores: `(queries, documents)`. Equal scores are ranked by position.
        relevant: bool `(queries, documents)`; or int64 `(queries,)`, the index of the only relevant
            document. A query without a relevant document is ignored.
        k: positive.
        row_weights: `(queries,)`.

    Raises:
        ValueError: the shapes do not fit, or `k` is not positive; on a CPU, a document is out of range.

    Example:
        >>> recall_at_k(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1, 0, 1]]).bool(), k=2).value
        tensor(0.5000)
    """
    wanted = _relevant(scores, relevant, -100)
    hits, total = _ranked(scores, wanted)[..., : _positive(k)].sum(-1), wanted.sum(-1)
    return weighted(hits / total.clamp(min=1), total > 0, row_weights)


def mean_reciprocal_rank(
    scores: Tensor, relevant: Tensor, *, row_weights: Tensor | None = None
) -> Mean:
    """Return the mean over queries of the reciprocal rank of the first relevant document.

    Args:
        scores: `(queries, documents)`. Equal scores are ranked by position.
        relevant: bool `(queries, documents)`; or int64 `(queries,)`, the index of the only relevant
            document. A query without a relevant document is ignored.
        row_weights: `(queries,)`.

    Raises:
        ValueError: the shapes do not fit; on a CPU, a document is out of range.

    Example:
        >>> mean_reciprocal_rank(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1])).value
        tensor(0.5000)
    """
    wanted = _relevant(scores, relevant, -100)
    ranks = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    best = (_ranked(scores, wanted) / ranks).amax(-1)
    return weighted(best, wanted.any(-1), row_weights)


def _ranked(scores: Tensor, relevant: Tensor) -> Tensor:
    """Return `relevant` sorted by descending score; entries with score NaN count as not relevant."""
    # `sort` puts NaN first.
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return (relevant & ~scores.isnan()).gather(-1, order)


def _relevant(scores: Tensor, relevant: Tensor, ignore_index: int) -> Tensor:
    if relevant.dtype != torch.bool and relevant.shape == scores.shape[:-1]:
        return one_hot(relevant, scores.shape[-1], ignore_index)
    if relevant.dtype == torch.bool and relevant.shape == scores.shape:
        return relevant
    raise ValueError(
        f"labels: expected integers of shape {tuple(scores.shape[:-1])}, or bool of shape "
        f"{tuple(scores.shape)}, got {relevant.dtype} of shape {tuple(relevant.shape)}. Reshape or "
        "convert them."
    )


def _positive(k: int) -> int:
    if k < 1:
        raise ValueError(f"k: expected a positive number, got {k}. Write k=1.")
    return k
