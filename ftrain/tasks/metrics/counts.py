"""Metrics computed from counts over a data set: confusion matrix, F1, intersection over union.

Read next: `calibration.py`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ftrain.tasks._weighted import classes_in_range

__all__ = [
    "ClassF1",
    "ConfusionMatrix",
    "MacroF1",
    "MeanIoU",
    "MicroF1",
    "WeightedF1",
    "confusion_matrix",
    "f1",
    "mean_iou",
]

_C = TypeVar("_C", bound="_ClassCounts")


class ConfusionMatrix(NamedTuple):
    """Counts of samples by the class of their label and the predicted class.

    Attributes:
        counts: int64 `(classes, classes)`: rows are classes of labels, columns are predicted classes.
    """

    counts: Tensor

    @property
    def value(self) -> Tensor:
        """Return the counts."""
        return self.counts

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Return the counts over the data of both `self` and `other`."""
        return type(self)(self.counts + other.counts)


class _ClassCounts(NamedTuple):
    hits: Tensor
    predicted: Tensor
    actual: Tensor


class ClassF1(_ClassCounts):
    r"""F1 scores of classes, $2 \, \mathrm{hits} / (\mathrm{predicted} + \mathrm{actual})$.

    Attributes:
        hits: int64 `(classes,)`: the number of correctly predicted labels of each class.
        predicted: int64 `(classes,)`: the number of predictions of each class.
        actual: int64 `(classes,)`: the number of labels of each class.
    """

    __slots__ = ()

    @property
    def value(self) -> Tensor:
        """Return the scores, `(classes,)`; NaN for a class neither in the labels nor predicted."""
        return 2 * self.hits / (self.predicted + self.actual)

    def merge(self: _C, other: _C) -> _C:
        """Return the counts over the data of both `self` and `other`."""
        pairs = zip(self, other, strict=True)
        return type(self)(*(mine + theirs for mine, theirs in pairs))


class MacroF1(ClassF1):
    """Mean F1 score of the classes that occur in labels or predictions; fields as in `ClassF1`."""

    __slots__ = ()

    @property
    def value(self) -> Tensor:
        """Return the mean over classes; NaN if there are none."""
        return super().value.nanmean(-1)


class MicroF1(ClassF1):
    """F1 score from counts summed over all classes; fields as in `ClassF1`."""

    __slots__ = ()

    @property
    def value(self) -> Tensor:
        """Return the score; NaN if nothing is counted."""
        return 2 * self.hits.sum(-1) / (self.predicted + self.actual).sum(-1)


class WeightedF1(ClassF1):
    """Mean F1 score of the classes, weighted by their number of labels; fields as in `ClassF1`."""

    __slots__ = ()

    @property
    def value(self) -> Tensor:
        """Return the weighted mean; NaN if there are no labels."""
        return (super().value.nan_to_num() * self.actual).sum(-1) / self.actual.sum(-1)


class MeanIoU(ClassF1):
    r"""Mean intersection over union of classes; fields as in `ClassF1`.

    $\mathrm{hits} / (\mathrm{predicted} + \mathrm{actual} - \mathrm{hits})$ of the pixels of the data
    set, averaged over the classes that occur in labels or predictions.
    """

    __slots__ = ()

    @property
    def value(self) -> Tensor:
        """Return the mean over classes; NaN if there are none."""
        return (self.hits / (self.predicted + self.actual - self.hits)).nanmean(-1)


_AVERAGES: dict[str, type[ClassF1]] = {
    "macro": MacroF1,
    "micro": MicroF1,
    "weighted": WeightedF1,
    "none": ClassF1,
}


def confusion_matrix(
    logits: Tensor, labels: Tensor, *, class_axis: int = -1, ignore_index: int = -100
) -> ConfusionMatrix:
    """Count samples by the class of their label and the class with the largest logit.

    Args:
        logits: floating point, with an axis of classes, the last by default.
        labels: integers, the shape of `logits` without the axis of classes.
        class_axis: the axis of classes: 1 for images `(n, classes, height, width)`.
        ignore_index: labels that are ignored.

    Raises:
        ValueError: the shapes do not fit; on a CPU, a label is out of range.

    Example:
        >>> confusion_matrix(torch.eye(2), torch.tensor([0, 0])).value
        tensor([[1, 1],
                [0, 0]])
    """
    classes, found = logits.shape[class_axis], logits.argmax(class_axis)
    if found.shape != labels.shape:
        raise ValueError(
            f"labels: expected classes of shape {tuple(found.shape)} for logits of shape "
            f"{tuple(logits.shape)}, got {tuple(labels.shape)}. Reshape the one that differs."
        )
    counts = labels != ignore_index
    # A label that is out of range gives a cell outside of the matrix, since predictions are in range, so
    # that `scatter_add` raises.
    cells = (labels.where(counts, 0) * classes + found).flatten()
    empty = torch.zeros(classes * classes, dtype=torch.int64, device=labels.device)
    with classes_in_range(labels, classes, ignore_index):
        filled = empty.scatter_add(0, cells, counts.flatten().to(torch.int64))
    return ConfusionMatrix(filled.reshape(classes, classes))


def f1(
    logits: Tensor,
    labels: Tensor,
    *,
    average: Literal["macro", "micro", "weighted", "none"] = "macro",
    class_axis: int = -1,
    ignore_index: int = -100,
) -> ClassF1:
    """Return the F1 score of predicted classes, or of independent labels.

    Args:
        logits: floating point, with an axis of classes, the last by default. The predicted class is that
            with the largest logit; for independent labels, each one with a positive logit is predicted.
        labels: integers, the shape of `logits` without the axis of classes; or independent labels, 0 or
            1, in the shape of `logits`.
        average: "macro": the mean over classes that occur in labels or predictions; "micro": the score
            from counts summed over all classes; "weighted": the mean weighted by numbers of labels;
            "none": the score of each class.
        class_axis: the axis of classes.
        ignore_index: labels that are ignored.

    Raises:
        ValueError: `average` is unknown, or the shapes do not fit; on a CPU, a label is out of range.

    Example:
        >>> f1(torch.eye(2), torch.tensor([0, 0])).value
        tensor(0.3333)
    """
    if average not in _AVERAGES:
        raise ValueError(
            f"average: expected {', '.join(map(repr, _AVERAGES))}, got {average!r}. Write 'macro'."
        )
    return _AVERAGES[average](*_class_counts(logits, labels, class_axis, ignore_index))


def mean_iou(
    logits: Tensor, labels: Tensor, *, class_axis: int = 1, ignore_index: int = -100
) -> MeanIoU:
    """Return the mean intersection over union of the classes, counted over the pixels of all images.

    Args:
        logits: `(n, classes, ...)`.
        labels: integers `(n, ...)`.
        class_axis: the axis of classes.
        ignore_index: labels that are ignored.

    Raises:
        ValueError: the shapes do not fit; on a CPU, a label is out of range.

    Example:
        >>> mean_iou(torch.eye(2)[None], torch.tensor([[0, 0]])).value
        tensor(0.2500)
    """
    return MeanIoU(*_class_counts(logits, labels, class_axis, ignore_index))


def _class_counts(
    logits: Tensor, labels: Tensor, class_axis: int, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of hits, of predictions and of labels of each class."""
    if labels.shape == logits.shape:
        counts = labels != ignore_index
        found, wanted = ((x > 0) & counts for x in (logits, labels))
        axes = [i for i in range(logits.ndim) if i != class_axis % logits.ndim]
        return (found & wanted).sum(axes), found.sum(axes), wanted.sum(axes)
    matrix = confusion_matrix(
        logits, labels, class_axis=class_axis, ignore_index=ignore_index
    ).counts
    return matrix.diagonal(), matrix.sum(0), matrix.sum(1)
