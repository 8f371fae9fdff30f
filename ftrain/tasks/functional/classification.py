"""Classification losses, with one or several labels per row; mixup and CutMix.

Read next: `language.py`, which applies `cross_entropy` to tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ftrain.core import random
from ftrain.core.metrics import Mean
from ftrain.tasks._weighted import classes_in_range, one_hot, over, weighted, widened

__all__ = ["cross_entropy", "cutmix", "mixup", "multi_label"]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_axis: int = -1,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    row_weights: Tensor | None = None,
) -> Mean:
    r"""Return the mean cross-entropy of classes, in nats.

    $$\frac{\sum_i w_i c_{y_i} \ell_i}{\sum_i w_i c_{y_i}}$$

    with row weights $w$ and class weights $c$, as in `torch.nn.functional.cross_entropy`. Rows with soft
    labels have the weight $w_i$, as in torch.

    Args:
        logits: floating point, with an axis of classes, the last by default.
        labels: integers, the shape of `logits` without the axis of classes; or soft labels,
            probabilities of the shape of `logits`.
        class_axis: the axis of classes: 1 for images `(n, classes, height, width)`.
        class_weights: `(classes,)`.
        label_smoothing: the share of each label that is spread over all classes.
        ignore_index: labels that are ignored.
        row_weights: the weights of rows, or of all labels; rows or labels of weight 0 add nothing.

    Raises:
        ValueError: the shapes do not fit; on a CPU, a label is out of range.

    Example:
        >>> cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, -100]))
        Mean(total=tensor(1.3863), weight=tensor(2))
    """
    classes = logits.shape[class_axis]
    shape = logits.movedim(class_axis, -1).shape
    soft = labels.is_floating_point()
    if labels.shape != (logits.shape if soft else shape[:-1]):
        raise ValueError(
            f"labels: expected classes of shape {tuple(shape[:-1])} or soft labels of shape "
            f"{tuple(logits.shape)} for logits of shape {tuple(logits.shape)}, got {labels.dtype} of "
            f"shape {tuple(labels.shape)}. Reshape the one that differs."
        )
    flat = logits.movedim(class_axis, -1).reshape(-1, classes)
    if soft:
        wanted = labels.movedim(class_axis, -1).reshape(-1, classes)
        values = F.cross_entropy(
            flat, wanted, class_weights, reduction="none", label_smoothing=label_smoothing
        )
        return weighted(values.reshape(shape[:-1]), row_weights)
    with classes_in_range(labels, classes, ignore_index):
        values = F.cross_entropy(
            flat,
            labels.reshape(-1),
            class_weights,
            reduction="none",
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
        ).reshape(shape[:-1])
    counts, values = labels != ignore_index, widened(values)  # bfloat16 has only two digits
    total = values if row_weights is None else values * over(row_weights, values)
    weights = counts if class_weights is None else class_weights[labels.where(counts, 0)] * counts
    if row_weights is not None:
        weights = weights * over(row_weights, values)
    return Mean(total.sum(), weights.sum())


def multi_label(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    positive_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    row_weights: Tensor | None = None,
) -> Mean:
    """Return the mean binary cross-entropy of independent labels, in nats.

    Args:
        logits: `(n, ..., classes)`.
        labels: 0, 1 or a probability between them, the shape of `logits`; any dtype.
        class_weights: `(classes,)`: the weight of each class in the mean.
        positive_weights: `(classes,)`: factors of the loss of positive labels; they do not change the
            weights.
        label_smoothing: the share of each label that is spread over 0 and 1.
        row_weights: the weights of rows, or of all labels.

    Example:
        >>> multi_label(torch.zeros(2, 3), torch.ones(2, 3)).value
        tensor(0.6931)
    """
    if labels.shape != logits.shape:
        raise ValueError(
            f"labels: expected the shape of the logits, {tuple(logits.shape)}, got "
            f"{tuple(labels.shape)}. Write one column of zeros and ones for each class."
        )
    wanted = labels.to(logits.dtype)
    if label_smoothing:
        wanted = wanted * (1 - label_smoothing) + label_smoothing / 2
    values = F.binary_cross_entropy_with_logits(
        logits, wanted, pos_weight=positive_weights, reduction="none"
    )
    columns = None if class_weights is None else class_weights.expand_as(values)
    return weighted(values, row_weights, columns)


def mixup(
    key: Tensor, inputs: Tensor, labels: Tensor, *, alpha: float, classes: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Return convex combinations of the rows of a batch with random rows of it (arXiv 1710.09412).

    $$x_i' = \lambda x_i + (1 - \lambda) x_{\pi(i)}, \quad y_i' = \lambda y_i + (1 - \lambda) y_{\pi(i)},
    \quad \lambda \sim \mathrm{Beta}(\alpha, \alpha)$$

    Rows are mixed within a micro-batch, so `accumulate=k` changes the mixtures.

    Args:
        key: the key of the permutation and of $\lambda$, which is one number for the batch.
        inputs: floating point `(n, ...)`.
        labels: soft labels `(n, classes)`; or classes `(n,)`, if `classes` is given.
        alpha: positive; small values leave rows nearly unmixed.
        classes: the number of classes.

    Example:
        >>> import ftrain
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> inputs, labels = mixup(ftrain.random.key(3), x, y, alpha=1.0, classes=2)
        >>> labels.sum(1)
        tensor([1., 1.])
    """
    soft = _soft(labels, classes, inputs.dtype)
    order, share, _ = _mixing(key, len(inputs), alpha, inputs)
    return torch.lerp(inputs[order], inputs, share), torch.lerp(soft[order], soft, share)


def cutmix(
    key: Tensor, inputs: Tensor, labels: Tensor, *, alpha: float, classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return images with a box of another image of the batch pasted in (arXiv 1905.04899).

    The labels are mixed in proportion to the area of the box. Images are mixed within a micro-batch, so
    `accumulate=k` changes the mixtures.

    Args:
        key: the key of the permutation and of the box, which is the same for the whole batch.
        inputs: `(n, ..., height, width)`.
        labels: soft labels `(n, classes)`; or classes `(n,)`, if `classes` is given.
        alpha: positive; the parameter of the Beta distribution of the area that is not replaced.
        classes: the number of classes.

    Example:
        >>> import ftrain
        >>> x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 1, 0])
        >>> inputs, labels = cutmix(ftrain.random.key(0), x, y, alpha=1.0, classes=2)
        >>> inputs.shape, labels.shape
        (torch.Size([4, 1, 8, 8]), torch.Size([4, 2]))
    """
    soft = _soft(labels, classes, inputs.dtype)
    order, share, at = _mixing(key, len(inputs), alpha, inputs)
    rows, columns = (
        _interval(size, torch.sqrt(1 - share), at[i], inputs)
        for i, size in enumerate(inputs.shape[-2:])
    )
    box = rows[:, None] & columns
    kept = 1 - box.to(inputs.dtype).mean()
    return torch.where(box, inputs[order], inputs), torch.lerp(soft[order], soft, kept)


def _mixing(key: Tensor, count: int, alpha: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a permutation of rows, a mixing weight from Beta(alpha, alpha), and two uniform numbers."""
    if alpha <= 0:
        raise ValueError(f"alpha: expected a positive number, got {alpha}. Write alpha=0.2.")
    of_order, of_share, of_place = random.split(key, 3)
    with random.keyed(of_share):
        both = torch.full((), alpha, dtype=like.dtype, device=like.device)
        share = torch.distributions.Beta(both, both, validate_args=False).sample()
    at = random.uniform(of_place, (2,)).to(like.dtype)
    return random.permutation(of_order, count), share, at


def _interval(size: int, side: Tensor, at: Tensor, like: Tensor) -> Tensor:
    """Return a mask of length `size`: True in an interval of length `side * size` around `at * size`."""
    places = torch.arange(size, dtype=like.dtype, device=like.device)
    half = (side * size).floor() / 2
    centre = (at * size).floor()
    return (places >= centre - half) & (places < centre + half)


def _soft(labels: Tensor, classes: int | None, dtype: torch.dtype) -> Tensor:
    if labels.is_floating_point():
        return labels.to(dtype)
    if classes is None:
        raise ValueError(
            f"classes: expected the number of classes, because labels are {labels.dtype}, got "
            "None. Write classes=10, or pass soft labels (n, classes)."
        )
    return one_hot(labels, classes).to(dtype)
