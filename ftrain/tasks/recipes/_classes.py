"""Evaluation of classification with one class per row."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from ftrain.core.metrics import Mean
from ftrain.tasks import functional, metrics
from ftrain.tasks.losses._batches import prediction_of_classes, row_weights

__all__ = ["Classified", "classified"]


class Classified(NamedTuple):
    """Logits and classes of a batch, with their plain cross-entropy and accuracy.

    Attributes:
        logits: `(n, classes)`.
        labels: int64 `(n,)`; for soft labels, the most likely class.
        loss: the cross-entropy without class weights or smoothing.
        accuracy: the share of rows whose class has the largest logit.
    """

    logits: Tensor
    labels: Tensor
    loss: Mean
    accuracy: Mean


def classified(
    model: nn.Module,
    batch: Any,
    input: str | int | None,
    target: str | int | None,
    ignore_index: int,
) -> Classified:
    """Call a model with a batch of one class per row; return logits, classes and their metrics."""
    logits, labels, _ = prediction_of_classes(model, batch, input, target)
    options: Any = {"ignore_index": ignore_index, "row_weights": row_weights(batch)}
    loss = functional.cross_entropy(logits, labels, **options)
    if labels.is_floating_point():
        labels = labels.argmax(-1)
    return Classified(logits, labels, loss, metrics.accuracy(logits, labels, **options))
