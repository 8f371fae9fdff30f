"""Segmentation losses, for images with one class per pixel; see also `cross_entropy`.

Read next: `embeddings.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ftrain.core.metrics import Mean
from ftrain.tasks import functional, metrics
from ftrain.tasks.losses._batches import Loss, prediction_of_classes, row_weights, without_padding

__all__ = ["dice", "focal", "lovasz", "tversky"]


def focal(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int = "x",
    target: str | int = "y",
    gamma: float = 2.0,
    ignore_index: int = -100,
) -> Loss:
    """Return the focal loss over pixels, and the mean intersection over union.

    Args:
        model: gives logits `(n, classes, height, width)`.
        batch: the targets are int64 `(n, height, width)`.
        input: the name of the model's input in the batch.
        target: the name of the classes.
        gamma: the exponent; 0 gives the cross-entropy.
        ignore_index: a class that is ignored.
    """
    return _images(functional.focal, model, batch, input, target, ignore_index, gamma=gamma)


def dice(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int = "x",
    target: str | int = "y",
    smooth: float = 0.0,
    ignore_index: int = -100,
) -> Loss:
    """Return the Dice loss over images and classes, and the mean intersection over union.

    Args:
        model: gives logits `(n, classes, height, width)`.
        batch: the targets are int64 `(n, height, width)`.
        input: the name of the model's input in the batch.
        target: the name of the classes.
        smooth: a number that is added to numerator and denominator.
        ignore_index: a class that is ignored.
    """
    return _images(functional.dice, model, batch, input, target, ignore_index, smooth=smooth)


def tversky(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int = "x",
    target: str | int = "y",
    false_positives: float = 0.3,
    false_negatives: float = 0.7,
    ignore_index: int = -100,
) -> Loss:
    """Return the Tversky loss over images and classes, and the mean intersection over union.

    Args:
        model: gives logits `(n, classes, height, width)`.
        batch: the targets are int64 `(n, height, width)`.
        input: the name of the model's input in the batch.
        target: the name of the classes.
        false_positives: the factor of pixels that are wrongly assigned to a class.
        false_negatives: the factor of pixels of a class that are wrongly not assigned to it.
        ignore_index: a class that is ignored.
    """
    return _images(
        functional.tversky,
        model,
        batch,
        input,
        target,
        ignore_index,
        false_positives=false_positives,
        false_negatives=false_negatives,
    )


def lovasz(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int = "x",
    target: str | int = "y",
    ignore_index: int = -100,
) -> Loss:
    """Return the Lovász-softmax loss over images and classes, and the mean intersection over union.

    Args:
        model: gives logits `(n, classes, height, width)`.
        batch: the targets are int64 `(n, height, width)`.
        input: the name of the model's input in the batch.
        target: the name of the classes.
        ignore_index: a class that is ignored.
    """
    return _images(functional.lovasz, model, batch, input, target, ignore_index)


def _images(
    function: Callable[..., Mean],
    model: nn.Module,
    batch: Any,
    input: str | int,
    target: str | int,
    ignore_index: int,
    **options: float,
) -> Loss:
    logits, labels, _ = prediction_of_classes(model, batch, input, target)
    weights = row_weights(batch)
    loss = function(logits, labels, ignore_index=ignore_index, row_weights=weights, **options)
    counted = without_padding(labels, weights, ignore_index)
    return loss, {"mean_iou": metrics.mean_iou(logits, counted, ignore_index=ignore_index)}
