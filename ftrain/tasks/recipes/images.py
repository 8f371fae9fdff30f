"""Tasks of images: classification (one class per image) and segmentation (one per pixel).

Read next: `text.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ftrain.core.metrics import Mean
from ftrain.tasks import functional, losses, metrics
from ftrain.tasks._weighted import one_hot, over
from ftrain.tasks.losses._batches import Loss, prediction_of_classes, row_weights, without_padding
from ftrain.tasks.recipes._classes import classified
from ftrain.tasks.recipes.task import Task

__all__ = ["image_classification", "segmentation"]


def image_classification(
    *,
    input: str | int | None = None,
    target: str | int | None = None,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    classes: int | None = None,
    top_k: int | None = None,
    ignore_index: int = -100,
) -> Task:
    """Return the task of image classification, with one class per image.

    The loss is `losses.cross_entropy`. Evaluation leaves out class weights, smoothing and mixing.

    Args:
        input: the entry of a batch that holds the images; `None`: chosen by `call_model`.
        target: the entry with the classes, int64 `(n,)`; `None`: found by `find_labels`.
        class_weights: the weight of each class in the mean.
        label_smoothing: the share of each label that is spread over all classes.
        mixup: the alpha of `functional.mixup`; 0: no mixup.
        cutmix: the alpha of `functional.cutmix`; 0: no CutMix. With both, one is drawn for each batch.
        classes: the number of classes, needed for mixing; in configurations, by default the value
            `classes` that the data provides.
        top_k: the `K` of the additional metric `top_K_accuracy`.
        ignore_index: a class that is ignored.

    Returns:
        A `Task` with the metrics `accuracy`, `calibration_error` and, with `top_k`, `top_K_accuracy`.

    Example:
        >>> image_classification(top_k=5).metrics
        ('accuracy', 'calibration_error', 'top_5_accuracy')
    """

    def loss_fn(model: nn.Module, batch: Any) -> Loss:
        return losses.cross_entropy(
            model,
            batch,
            input=input,
            target=target,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            mixup=mixup,
            cutmix=cutmix,
            classes=classes,
        )

    def eval_fn(model: nn.Module, batch: Any) -> Loss:
        logits, labels, loss, accuracy = classified(model, batch, input, target, ignore_index)
        options: Any = {"ignore_index": ignore_index, "row_weights": row_weights(batch)}
        found = {
            "accuracy": accuracy,
            "calibration_error": metrics.calibration_error(logits, labels, **options),
        }
        if top_k is not None:
            best = metrics.top_k_accuracy(logits, labels, k=top_k, **options)
            found[f"top_{top_k}_accuracy"] = best
        return loss, found

    more = () if top_k is None else (f"top_{top_k}_accuracy",)
    return Task(loss_fn, eval_fn, ("accuracy", "calibration_error", *more))


def segmentation(
    *,
    input: str | int | None = None,
    target: str | int | None = None,
    dice: float = 1.0,
    cross_entropy: float = 1.0,
    smooth: float = 0.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Task:
    """Return the task of segmentation: images with one class per pixel.

    The loss of an image is a sum of two means, each with a factor: the cross-entropy of its pixels, and
    the Dice loss of the classes in its labels. The loss of a batch is the mean over its images, so that
    means over any batches are exact. Images whose pixels are all ignored are left out.

    Args:
        input: the entry of a batch that holds the images; `None`: chosen by `call_model`.
        target: the entry with the classes, int64 `(n, height, width)`; `None`: found by `find_labels`.
        dice: the factor of the Dice loss, 0 or more.
        cross_entropy: the factor of the cross-entropy, 0 or more.
        smooth: see `functional.dice`.
        label_smoothing: the share of each label that is spread over all classes, in the cross-entropy of
            training.
        ignore_index: a class that is ignored.

    Returns:
        A `Task` with the metrics `mean_iou` and `accuracy` (of pixels).

    Raises:
        ValueError: a factor is negative, or both are 0.

    Example:
        >>> segmentation(dice=0.5).metrics
        ('mean_iou', 'accuracy')
    """
    if min(dice, cross_entropy) < 0 or not dice + cross_entropy:
        raise ValueError(
            f"dice, cross_entropy: expected factors of 0 or more that are not both 0, got {dice} and "
            f"{cross_entropy}. Write dice=1.0."
        )

    def loss_of(logits: Tensor, labels: Tensor, weights: Tensor | None, smoothed: float) -> Mean:
        # The weights of the pixels, and those of the classes, add up to 1 within each image.
        counts = labels != ignore_index
        pixels = counts.flatten(1).sum(1)
        known = one_hot(labels, logits.shape[1], ignore_index).flatten(1, -2).any(1).sum(1)
        images = (pixels > 0).to(logits.dtype)
        if weights is not None:
            images = images * weights
        of_pixels = functional.cross_entropy(
            logits,
            labels,
            class_axis=1,
            label_smoothing=smoothed,
            ignore_index=ignore_index,
            row_weights=over(images / pixels.clamp(min=1), labels).expand_as(labels),
        )
        of_classes = functional.dice(
            logits,
            labels,
            smooth=smooth,
            ignore_index=ignore_index,
            row_weights=images / known.clamp(min=1),
        )
        return Mean(cross_entropy * of_pixels.total + dice * of_classes.total, images.sum())

    def mean_iou(logits: Tensor, labels: Tensor, weights: Tensor | None) -> metrics.MeanIoU:
        counted = without_padding(labels, weights, ignore_index)
        return metrics.mean_iou(logits, counted, ignore_index=ignore_index)

    def loss_fn(model: nn.Module, batch: Any) -> Loss:
        logits, labels, _ = prediction_of_classes(model, batch, input, target)
        weights = row_weights(batch)
        loss = loss_of(logits, labels, weights, label_smoothing)
        return loss, {"mean_iou": mean_iou(logits, labels, weights)}

    def eval_fn(model: nn.Module, batch: Any) -> Loss:
        logits, labels, _ = prediction_of_classes(model, batch, input, target)
        weights = row_weights(batch)
        accuracy = metrics.accuracy(
            logits, labels, class_axis=1, ignore_index=ignore_index, row_weights=weights
        )
        return loss_of(logits, labels, weights, 0.0), {
            "mean_iou": mean_iou(logits, labels, weights),
            "accuracy": accuracy,
        }

    return Task(loss_fn, eval_fn, ("mean_iou", "accuracy"))
