"""Losses of a student against the outputs of a teacher, which are not differentiated.

Read next: `contrastive.py`, whose embeddings are compared with each other.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ftrain.core.metrics import Mean
from ftrain.tasks._weighted import over, weighted, widened
from ftrain.tasks.functional.classification import cross_entropy

__all__ = ["byol", "dino", "distillation", "feature_matching", "soft_targets"]


def soft_targets(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    class_axis: int = -1,
    row_weights: Tensor | None = None,
) -> Mean:
    r"""Return the mean KL divergence between softened class distributions, teacher to student, in nats.

    $$T^2 \, \mathrm{KL}(p \| q) = T^2 \sum_k p_k \log \frac{p_k}{q_k}, \quad p =
    \mathrm{softmax}(t / T), \quad q = \mathrm{softmax}(s / T)$$

    with the factor $T^2$ (arXiv 1503.02531), which makes the size of the gradients nearly independent of
    the temperature. A class to which the teacher gives probability 0 (a logit of minus infinity) adds
    nothing.

    Args:
        logits: floating point, with an axis of classes, the last by default.
        teacher_logits: the same shape; not differentiated.
        temperature: $T$, positive.
        class_axis: the axis of classes: 1 for images `(n, classes, height, width)`.
        row_weights: the weights of rows, or of all places; rows or places of weight 0 add nothing.

    Raises:
        ValueError: the shapes differ; the temperature is not positive.

    Example:
        >>> soft_targets(torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]), temperature=2.0).value
        tensor(0.4438)
    """
    _check_shapes(
        "teacher_logits",
        logits,
        teacher_logits,
        "Give both models the same classes, or match features through a projection: feature_matching",
    )
    _check_positive("temperature", temperature)
    log_p = (widened(teacher_logits.detach()) / temperature).log_softmax(class_axis)
    log_q = (widened(logits) / temperature).log_softmax(class_axis)
    p = log_p.exp()
    each = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(class_axis)
    return weighted(temperature**2 * each, row_weights)


def distillation(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 4.0,
    soft_weight: float = 0.9,
    class_axis: int = -1,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    row_weights: Tensor | None = None,
) -> Mean:
    r"""Return the mean weighted sum of the losses against labels and against a teacher, in nats.

    $$(1 - \alpha) \, \ell_{\mathrm{hard}} + \alpha \, T^2 \, \mathrm{KL}(p \| q)$$

    with the cross-entropy $\ell_{\mathrm{hard}}$ of the labels, and the divergence of `soft_targets`.
    Both losses have the same weights: a row whose label is ignored is left out of both.

    Args:
        logits: floating point, with an axis of classes, the last by default.
        teacher_logits: the same shape; not differentiated.
        labels: as for `cross_entropy`; `None`, with `soft_weight=1`, if there are no labels.
        temperature: $T$, positive, of the soft loss alone.
        soft_weight: $\alpha$, in [0, 1].
        class_axis: the axis of classes.
        label_smoothing: the label smoothing of the hard loss.
        ignore_index: labels whose rows are ignored.
        row_weights: the weights of rows, or of all places.

    Raises:
        ValueError: the shapes do not fit; an option is out of range; labels are missing.

    Example:
        >>> logits, teacher, labels = torch.zeros(2, 3), torch.eye(3)[:2], torch.tensor([0, 1])
        >>> distillation(logits, teacher, labels, temperature=2.0, soft_weight=0.5).value
        tensor(0.6096)
    """
    if not 0 <= soft_weight <= 1:
        raise ValueError(
            f"soft_weight: expected a number in [0, 1], got {soft_weight}. Write soft_weight=0.9, which "
            "multiplies the loss against the teacher by 0.9, and that against labels by 0.1."
        )
    if labels is None:
        if soft_weight != 1:
            raise ValueError(
                f"labels: expected classes for a hard loss of weight {1 - soft_weight:g}, got None. "
                "Pass labels, or write soft_weight=1."
            )
        return soft_targets(
            logits,
            teacher_logits,
            temperature=temperature,
            class_axis=class_axis,
            row_weights=row_weights,
        )
    hard = cross_entropy(
        widened(logits),
        widened(labels) if labels.is_floating_point() else labels,
        class_axis=class_axis,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        row_weights=row_weights,
    )
    counts = row_weights
    if not labels.is_floating_point():
        counts = labels != ignore_index
        counts = counts if row_weights is None else counts * over(row_weights, counts)
    soft = soft_targets(
        logits,
        teacher_logits,
        temperature=temperature,
        class_axis=class_axis,
        row_weights=counts,
    )
    return Mean((1 - soft_weight) * hard.total + soft_weight * soft.total, hard.weight)


def feature_matching(
    features: Tensor,
    teacher_features: Tensor,
    *,
    distance: Literal["mse", "cosine"] = "mse",
    feature_axis: int = -1,
    row_weights: Tensor | None = None,
) -> Mean:
    r"""Return the mean distance of the student's features from the teacher's (arXiv 1412.6550).

    The value of a row is the mean over its vectors of $\frac{1}{d} \|s - t\|^2$ or of $1 - \cos(s, t)$,
    so that all rows have equal weight.

    Args:
        features: `(n, ..., width)`, or with the widths at another axis.
        teacher_features: the same shape; not differentiated. A student of another width needs a
            projection in its own parameters, such as an `nn.Linear`.
        distance: `"mse"`, or `"cosine"`, which does not depend on the lengths of the vectors.
        feature_axis: the axis of the vectors: 1 for the channels of images.
        row_weights: `(n,)`.

    Raises:
        ValueError: the shapes differ; the distance is unknown.

    Example:
        >>> feature_matching(torch.zeros(2, 4), torch.ones(2, 4))
        Mean(total=tensor(2.), weight=tensor(2))
        >>> feature_matching(torch.eye(2), 3 * torch.eye(2), distance="cosine").value
        tensor(0.)
    """
    _check_shapes(
        "teacher_features",
        features,
        teacher_features,
        "Project the student's features with a layer of its own parameters: nn.Linear(width, "
        "teacher_width), or nn.Conv2d(channels, teacher_channels, 1)",
    )
    # In bfloat16, 1 - cos has steps of 0.004; in float16, squares of 256 are infinite.
    features, wanted = widened(features), widened(teacher_features.detach())
    if distance == "mse":
        each = (features - wanted).square().mean(feature_axis)
    elif distance == "cosine":
        each = 1 - F.cosine_similarity(features, wanted, dim=feature_axis)
    else:
        raise ValueError(
            f"distance: expected 'mse' or 'cosine', got {distance!r}. Write one of them."
        )
    return weighted(each.reshape(len(each), -1).mean(1), row_weights)


def byol(predictions: Tensor, targets: Tensor, *, row_weights: Tensor | None = None) -> Mean:
    r"""Return the mean squared distance of normalized vectors (BYOL, arXiv 2006.07733).

    $$\Big\| \frac{q}{\|q\|} - \frac{z}{\|z\|} \Big\|^2 = 2 - 2 \cos(q, z)$$

    Args:
        predictions: `(n, width)`: the student's outputs for one view of the samples.
        targets: `(n, width)`: the teacher's outputs for the other view; not differentiated.
        row_weights: `(n,)`.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> byol(torch.eye(2), torch.eye(2).flip(0)).value
        tensor(2.)
    """
    found = feature_matching(predictions, targets, distance="cosine", row_weights=row_weights)
    return Mean(2 * found.total, found.weight)


def dino(
    logits: Tensor,
    teacher_logits: Tensor,
    center: Tensor,
    *,
    temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    row_weights: Tensor | None = None,
) -> Mean:
    r"""Return the mean cross-entropy against centered and sharpened targets (DINO, arXiv 2104.14294).

    $$-\sum_k p_k \log q_k, \quad p = \mathrm{softmax}((t - c) / \tau_t), \quad q = \mathrm{softmax}(s /
    \tau_s)$$

    The center $c$, an average of the teacher's outputs over batches, prevents one class from dominating;
    the low temperature $\tau_t$ keeps the targets from becoming uniform.

    Args:
        logits: `(n, ..., width)`: the student's outputs for one view of the samples.
        teacher_logits: the teacher's outputs for another view, in the same shape; not differentiated.
        center: `(width,)`; not differentiated.
        temperature: $\tau_s$, positive.
        teacher_temperature: $\tau_t$, positive; below $\tau_s$ it sharpens.
        row_weights: the weights of rows.

    Raises:
        ValueError: the shapes differ; a temperature is not positive.

    Example:
        >>> dino(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(4)).value
        tensor(1.3863)
    """
    _check_shapes("teacher_logits", logits, teacher_logits, "Give both models the same head")
    if center.shape != logits.shape[-1:]:
        raise ValueError(
            f"center: expected the shape of one output, {tuple(logits.shape[-1:])}, got "
            f"{tuple(center.shape)}. Start with torch.zeros({logits.shape[-1]})."
        )
    _check_positive("temperature", temperature)
    _check_positive("teacher_temperature", teacher_temperature)
    targets = ((widened(teacher_logits) - center).detach() / teacher_temperature).softmax(-1)
    each = -(targets * (widened(logits) / temperature).log_softmax(-1)).sum(-1)
    return weighted(each, row_weights)


def _check_shapes(name: str, student: Tensor, teacher: Tensor, remedy: str) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{name}: expected the student's shape {tuple(student.shape)}, got "
            f"{tuple(teacher.shape)} from the teacher. {remedy}."
        )


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: expected a positive number, got {value}. Write {name}=1.0.")
