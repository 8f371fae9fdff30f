"""Classification and regression losses, with one or several labels or numbers per row.

Read next: `text.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftrain.core import random
from ftrain.core.metrics import Mean
from ftrain.tasks import functional, metrics
from ftrain.tasks._weighted import weighted
from ftrain.tasks.losses._batches import (
    Loss,
    as_weights,
    inputs_and_labels,
    prediction,
    prediction_of_classes,
    row_weights,
    without_padding,
)

__all__ = [
    "binary_cross_entropy",
    "cross_entropy",
    "gaussian_nll",
    "huber",
    "mae",
    "mse",
    "multi_label",
]


def cross_entropy(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int | None = "x",
    target: str | int | None = "y",
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    classes: int | None = None,
) -> Loss:
    """Return the cross-entropy over classes, in nats, and the accuracy.

    Args:
        model: gives logits `(n, classes)`, or `(n, classes, height, width)` for images of classes.
        batch: the targets are int64 `(n,)` (`(n, height, width)`) or soft labels like the logits; a
            `weight` `(n,)` of rows is taken into account.
        input: the name of the model's input in the batch; null: chosen by `call_model`.
        target: the name of the classes; null: found by `find_labels`.
        class_weights: the weight of each class in the mean.
        label_smoothing: the share of each label that is spread over all classes.
        ignore_index: a class that is ignored.
        mixup: the alpha of `functional.mixup`, in training; 0: no mixup.
        cutmix: the alpha of `functional.cutmix`, in training; 0: no CutMix. With both, one is drawn for
            each batch.
        classes: the number of classes, to mix integer targets; null: the value `classes` that the data
            provides.
    """
    if (mixup or cutmix) and model.training:
        pair = _mixed(batch, input, target, {"mixup": mixup, "cutmix": cutmix}, classes)
        logits, labels, _ = prediction_of_classes(model, pair, None, None)
    else:
        logits, labels, _ = prediction_of_classes(model, batch, input, target)
    named = "the labels" if target is None else f"batch[{target!r}]"
    soft = labels.is_floating_point()
    if soft and labels.ndim < 2:
        raise TypeError(
            f"cross_entropy: expected integer classes as {named}, got {labels.dtype}. Convert the "
            "labels, y.astype('int64'); for a csv, write `data.classes: true`, or `loss: mse` to "
            "predict numbers."
        )
    if logits.ndim < 2 or labels.shape != (
        logits.shape if soft else logits.shape[:1] + logits.shape[2:]
    ):
        raise ValueError(
            f"cross_entropy: expected logits (n, classes) and classes (n,), got {tuple(logits.shape)} "
            f"from the model and {tuple(labels.shape)} as {named}. Reshape the one that "
            "differs."
        )
    weights = row_weights(batch)
    loss = functional.cross_entropy(
        logits,
        labels,
        class_axis=1,
        class_weights=as_weights(class_weights, logits),
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        row_weights=weights,
    )
    accuracy = metrics.accuracy(
        logits,
        labels.argmax(1) if soft else labels,
        class_axis=1,
        ignore_index=ignore_index,
        row_weights=weights,
    )
    return loss, {"accuracy": accuracy}


def binary_cross_entropy(
    model: nn.Module, batch: Any, *, input: str | int = "x", target: str | int = "y"
) -> Loss:
    """Return the binary cross-entropy, in nats, and the accuracy.

    Args:
        model: gives logits `(n,)` or `(n, 1)`.
        batch: the targets are 0 or 1, `(n,)`; a `weight` `(n,)` of rows is taken into account.
        input: the name of the model's input in the batch.
        target: the name of the labels.
    """
    output, answers, _ = prediction(model, batch, input, target)
    logits = _as_targets(output, answers, target)
    each = F.binary_cross_entropy_with_logits(logits, answers.to(logits.dtype), reduction="none")
    hits = ((logits > 0) == (answers > 0.5)).to(each.dtype)
    weights = row_weights(batch)
    return weighted(each, weights), {"accuracy": weighted(hits, weights)}


def multi_label(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int = "x",
    target: str | int = "y",
    class_weights: Sequence[float] | None = None,
    positive_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Loss:
    """Return the binary cross-entropy of independent labels, in nats, and their macro F1 score.

    Args:
        model: gives logits `(n, classes)`.
        batch: the targets are 0 or 1, `(n, classes)`; a `weight` `(n,)` of rows is taken into account.
        input: the name of the model's input in the batch.
        target: the name of the labels.
        class_weights: the weight of each class in the mean.
        positive_weights: the factor of the loss of positive labels of each class.
        label_smoothing: the share of each label that is spread over 0 and 1.
    """
    logits, labels, _ = prediction(model, batch, input, target)
    weights = row_weights(batch)
    loss = functional.multi_label(
        logits,
        labels,
        class_weights=as_weights(class_weights, logits),
        positive_weights=as_weights(positive_weights, logits),
        label_smoothing=label_smoothing,
        row_weights=weights,
    )
    return loss, {"f1": metrics.f1(logits, without_padding(labels, weights))}


def mse(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int = "x",
    target: str | int = "y",
    target_scale: float | None = None,
) -> Loss:
    """Return the mean squared error, and the mean absolute error in the units of the unscaled data.

    Args:
        model: gives `(n,)`, `(n, 1)`, or the shape of the targets.
        batch: the targets are floating-point; a `weight` `(n,)` of rows is taken into account.
        input: the name of the model's input in the batch.
        target: the name of the numbers to predict.
        target_scale: the factor of the absolute error; null: the value `target_scale` that the data
            provides (the standard deviation of a standardized column), or 1.
    """
    return _regression("mse", torch.square, model, batch, input, target, target_scale)


def mae(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int = "x",
    target: str | int = "y",
    target_scale: float | None = None,
) -> Loss:
    """Return the mean absolute error, and its value in the units that the data had before scaling.

    Args:
        model: gives `(n,)`, `(n, 1)`, or the shape of the targets.
        batch: the targets are floating-point; a `weight` `(n,)` of rows is taken into account.
        input: the name of the model's input in the batch.
        target: the name of the numbers to predict.
        target_scale: as in `mse`.
    """
    return _regression("mae", torch.abs, model, batch, input, target, target_scale)


def huber(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int = "x",
    target: str | int = "y",
    delta: float = 1.0,
    target_scale: float | None = None,
) -> Loss:
    """Return the mean Huber loss, and the mean absolute error in the units of the unscaled data.

    Args:
        model: gives `(n,)`, `(n, 1)`, or the shape of the targets.
        batch: the targets are floating-point; a `weight` `(n,)` of rows is taken into account.
        input: the name of the model's input in the batch.
        target: the name of the numbers to predict.
        delta: the error from which the loss is linear, in the units of the model's outputs.
        target_scale: as in `mse`.
    """

    def each(error: Tensor) -> Tensor:
        return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)

    return _regression("huber", each, model, batch, input, target, target_scale)


def gaussian_nll(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int = "x",
    target: str | int = "y",
    target_scale: float | None = None,
) -> Loss:
    """Return the negative log-likelihood of normal distributions, and the absolute error of their means.

    Args:
        model: gives `(n, 2 * numbers)`: the means, then the logarithms of the variances.
        batch: the targets are floating-point; a `weight` `(n,)` of rows is taken into account.
        input: the name of the model's input in the batch.
        target: the name of the numbers to predict.
        target_scale: as in `mse`.
    """
    output, wanted, _ = prediction(model, batch, input, target)
    _floating("gaussian_nll", wanted, target)
    if output.shape[-1] % 2:
        raise ValueError(
            "gaussian_nll: expected an even number of outputs, means and then log-variances, got "
            f"{tuple(output.shape)} from the model. Give the model two outputs per target."
        )
    means, log_variances = (_as_targets(x, wanted, target) for x in output.chunk(2, -1))
    weights = row_weights(batch)
    loss = functional.gaussian_nll(means, log_variances, wanted, row_weights=weights)
    return loss, {"mae": _away(means - wanted, target_scale, weights)}


def _regression(
    name: str,
    each: Callable[[Tensor], Tensor],
    model: nn.Module,
    batch: Any,
    input: str | int,
    target: str | int,
    target_scale: float | None,
) -> Loss:
    output, wanted, _ = prediction(model, batch, input, target)
    _floating(name, wanted, target)
    error, weights = _as_targets(output, wanted, target) - wanted, row_weights(batch)
    # The loss of a row is the mean over its numbers, so that all rows have equal weight.
    loss = weighted(each(error).reshape(len(error), -1).mean(1), weights)
    return loss, {"mae": _away(error, target_scale, weights)}


def _away(error: Tensor, target_scale: float | None, weights: Tensor | None) -> Mean:
    away = error.detach().abs().reshape(len(error), -1).mean(1)
    return weighted(away * (1.0 if target_scale is None else target_scale), weights)


def _floating(name: str, wanted: Tensor, target: str | int) -> None:
    if not wanted.is_floating_point():
        raise TypeError(
            f"{name}: expected float32 numbers as batch[{target!r}] (integers must be converted; words "
            f"in a csv become classes), got {wanted.dtype}. Write `loss: cross_entropy` to predict "
            "classes."
        )


def _as_targets(found: Tensor, wanted: Tensor, target: str | int) -> Tensor:
    """Return the model's output in the shape of the targets: `(n, 1)` becomes `(n,)`."""
    if found.numel() != wanted.numel():
        raise ValueError(
            f"model: expected outputs of shape {tuple(wanted.shape)}, as batch[{target!r}], got "
            f"{tuple(found.shape)}. Give the model one output per target."
        )
    return found.reshape(wanted.shape)


def _mixed(
    batch: Any,
    input: str | int | None,
    target: str | int | None,
    alphas: dict[str, float],
    classes: int | None,
) -> tuple[Tensor, Tensor]:
    """Mix inputs and labels by mixup or CutMix, chosen at random if both have a nonzero alpha."""
    if row_weights(batch) is not None:
        raise ValueError(
            "batch: expected no entry 'weight' with mixup or cutmix, because rows of different weights "
            "would be mixed. Remove the weights, or set mixup and cutmix to 0."
        )
    inputs, labels = inputs_and_labels(batch, input, target)
    key = random.next_key()
    ways = [getattr(functional, name) for name, alpha in alphas.items() if alpha]
    found = [
        way(key, inputs, labels, alpha=alpha, classes=classes)
        for way, alpha in zip(ways, filter(None, alphas.values()), strict=True)
    ]
    if len(found) == 1:
        mixed: tuple[Tensor, Tensor] = found[0]
        return mixed
    first = random.bernoulli(random.next_key(), 0.5, ())
    return (
        torch.where(first, found[0][0], found[1][0]),
        torch.where(first, found[0][1], found[1][1]),
    )
