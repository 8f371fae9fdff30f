"""Weighted means, one-hot labels, and the error message for labels out of range."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ftrain.core.accumulate import sum_dtype
from ftrain.core.metrics import Mean

__all__ = ["classes_in_range", "one_hot", "over", "places_in", "weighted", "widened"]


def weighted(values: Tensor, *factors: Tensor | None) -> Mean:
    """Return the weighted mean of values as a `Mean`; the weights are a product of factors.

    The total is summed in float32 or wider: in float16 a sum of 700 values of 100 is infinite.

    Args:
        values: any shape.
        factors: weights; the axes of each are the first axes of `values`, and it is broadcast over the
            remaining ones.

    >>> weighted(torch.ones(2, 3), torch.tensor([1.0, 0.0]), torch.ones(2, 3).bool())
    Mean(total=tensor(3.), weight=tensor(3.))
    """
    values = widened(values) if values.is_floating_point() else values
    weights = None
    for factor in factors:
        if factor is not None:
            wide = over(factor, values)
            weights = wide if weights is None else weights * wide
    if weights is None:
        # Not torch.tensor(n, device=...), which copies from the host and waits.
        count = torch.full((), values.numel(), dtype=torch.int64, device=values.device)
        return Mean(values.sum(), count)
    return Mean((values * weights).sum(), weights.expand_as(values).sum())


def widened(x: Tensor) -> Tensor:
    """Return a tensor in float32, or in its own dtype if that is wider."""
    return x.to(sum_dtype(x.dtype))


def over(factor: Tensor, values: Tensor) -> Tensor:
    """Add trailing axes of length one to a factor, so that it broadcasts with `values`."""
    if factor.shape != values.shape[: factor.ndim]:
        raise ValueError(
            f"row_weights: expected a shape equal to the first axes of {tuple(values.shape)}, got "
            f"{tuple(factor.shape)}. Give one weight per row, or one per value."
        )
    return factor.reshape(factor.shape + (1,) * (values.ndim - factor.ndim))


def one_hot(labels: Tensor, classes: int, ignore_index: int = -100) -> Tensor:
    """Return boolean one-hot labels, along a new last axis; ignored labels are all False.

    `F.one_hot` reads the largest label on the host, which neither `vmap` nor a compiled step can.

    >>> one_hot(torch.tensor([1, -100]), 2)
    tensor([[False,  True],
            [False, False]])
    """
    counts = labels != ignore_index
    known = labels.where(counts, 0).unsqueeze(-1)
    empty = torch.zeros((*labels.shape, classes), dtype=torch.bool, device=labels.device)
    with classes_in_range(labels, classes, ignore_index):
        return empty.scatter(-1, known, True) & counts.unsqueeze(-1)


@contextlib.contextmanager
def classes_in_range(labels: Tensor, classes: int, ignore_index: int) -> Iterator[None]:
    """Replace torch's error for labels out of range, in a `with` block, by one that names the label.

    The labels are read only after torch has raised, so labels in range cause no extra cost. On CUDA,
    operators of torch abort with an assertion instead.
    """
    try:
        yield
    except (IndexError, RuntimeError) as error:
        try:
            found = _out_of_range(labels, classes, ignore_index)
        except Exception:  # under a transform, a label has no value to read
            raise error from None
        if found is None:
            raise
        raise found from error


@contextlib.contextmanager
def places_in(labels: Tensor, ignore_index: int) -> Iterator[None]:
    """Rewrite out-of-range label errors in a `with` block, with the label's index in the full `labels`.

    Losses that compare only `labels[:, 1:]`, or parts of it, use this context.
    """
    try:
        yield
    except _OutOfRangeError as error:
        compared = labels.clone()
        compared[:, :1] = ignore_index
        raise _out_of_range(compared, error.classes, ignore_index) or error from error.__cause__


class _OutOfRangeError(ValueError):
    """Error for labels out of range, with the number of classes."""

    classes: int


def _out_of_range(labels: Tensor, classes: int, ignore_index: int) -> _OutOfRangeError | None:
    """Return the error that names the first label out of range; `None` if all are in range."""
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
    places = wrong.nonzero().tolist()
    if not places:
        return None
    where = tuple(places[0])
    negative, too_large = bool((labels[wrong] < 0).any()), bool((labels >= classes).any())
    remedy = "Give the model more outputs, or correct the labels"
    if negative:
        remedy = "Correct the labels"
        if not too_large and len(set(labels[wrong].tolist())) == 1:
            remedy += f", or leave them out of the loss: ignore_index={labels[where].item()}"
    error = _OutOfRangeError(
        f"labels: expected classes 0 to {classes - 1}, or {ignore_index} for labels to ignore, got "
        f"{labels[where].item()} at {list(where)} ({len(places)} of {labels.numel()} labels are out of "
        f"range). {remedy}."
    )
    error.classes = classes
    return error
