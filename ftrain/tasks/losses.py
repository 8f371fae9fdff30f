"""Losses that configurations name; they return sums and counts, so that means merge over batches.

Each reads its batch by name: `input` and `target` are the keys, `x` and `y` by default.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ftrain.core.metrics import Mean

__all__ = ["binary_cross_entropy", "cross_entropy", "mse", "next_token"]

Loss = tuple[Mean, dict[str, Mean]]


def cross_entropy(
    model: nn.Module,
    batch: Any,
    *,
    input: str = "x",
    target: str = "y",
    label_smoothing: float = 0.0,
) -> Loss:
    """Return the cross-entropy over classes, in nats, and the accuracy.

    Args:
        model: gives logits `(n, classes)`.
        batch: a dict; the targets are int64 `(n,)`; a `weight` `(n,)` of rows is taken into account.
        input: the name of what goes into the model.
        target: the name of the classes.
        label_smoothing: the share that is spread over all classes.
    """
    labels = _entry(batch, target)
    if labels.is_floating_point():
        raise TypeError(
            f"cross_entropy: expected integer classes as batch[{target!r}], got {labels.dtype}. Write "
            "`data.classes: true` to read the numbers of a csv as classes, or `loss: mse` to predict "
            "numbers"
        )
    logits = model(_entry(batch, input))
    if logits.ndim != 2 or labels.ndim != 1:
        raise ValueError(
            f"cross_entropy: expected logits (n, classes) and classes (n,), got {tuple(logits.shape)} "
            f"from the model and {tuple(labels.shape)} as batch[{target!r}]. Reshape the one that "
            "differs"
        )
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    hits = (logits.argmax(-1) == labels).to(each.dtype)
    return _mean(each, batch), {"accuracy": _mean(hits.detach(), batch)}


def binary_cross_entropy(
    model: nn.Module, batch: Any, *, input: str = "x", target: str = "y"
) -> Loss:
    """Return the binary cross-entropy, in nats, and the accuracy.

    Args:
        model: gives logits `(n,)` or `(n, 1)`.
        batch: a dict; the targets are 0 or 1, `(n,)`.
        input: the name of what goes into the model.
        target: the name of the answers.
    """
    answers = _entry(batch, target)
    logits = _as_targets(model(_entry(batch, input)), answers, target)
    each = F.binary_cross_entropy_with_logits(logits, answers.to(logits.dtype), reduction="none")
    hits = ((logits > 0) == (answers > 0.5)).to(each.dtype)
    return _mean(each, batch), {"accuracy": _mean(hits.detach(), batch)}


def mse(
    model: nn.Module,
    batch: Any,
    *,
    input: str = "x",
    target: str = "y",
    target_scale: float | None = None,
) -> Loss:
    """Return the mean squared error, and the mean absolute error in the units of the data.

    Args:
        model: gives `(n,)`, `(n, 1)`, or the shape of the targets.
        batch: a dict; the targets are floating-point.
        input: the name of what goes into the model.
        target: the name of the numbers to predict.
        target_scale: the factor of the absolute error; null: the data's fact of this name (the standard
            deviation of a standardized column), or 1.
    """
    wanted = _entry(batch, target)
    if not wanted.is_floating_point():
        raise TypeError(
            f"mse: expected float32 numbers as batch[{target!r}] (integers must be converted; words in "
            f"a csv become classes), got {wanted.dtype}. Write `loss: cross_entropy` to predict classes"
        )
    error = _as_targets(model(_entry(batch, input)), wanted, target) - wanted
    each = error.reshape(len(error), -1)  # one row a sample, however many numbers it has
    away = each.detach().abs().mean(1) * (1.0 if target_scale is None else target_scale)
    return _mean(each.square().mean(1), batch), {"mae": _mean(away, batch)}


def next_token(model: nn.Module, batch: Any, *, ignore: int = -100) -> Mean:
    """Return the next-token cross-entropy, in nats, over all tokens of a window but the first.

    Args:
        model: `(n, length) -> logits (n, length, vocabulary)`.
        batch: windows, int64 `(n, length + 1)`.
        ignore: tokens that are not to be predicted, such as padding.
    """
    logits, targets = model(batch[:, :-1]), batch[:, 1:]
    total = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=ignore, reduction="sum"
    )
    return Mean(total, (targets != ignore).sum())


def _entry(batch: Any, name: str) -> torch.Tensor:
    if not isinstance(batch, dict):
        raise TypeError(
            f"batch: expected a dict with {name!r}, got a {type(batch).__name__}. Return dicts from "
            "the data function, or write your own loss: file.py:loss_fn"
        )
    if name not in batch:
        raise KeyError(
            f"batch: expected a key {name!r}, got {', '.join(map(repr, batch))}. Write in the "
            "configuration which keys the loss reads: "
            f"loss: {{name: ..., input: {next(iter(batch))}, target: ...}}"
        )
    found: torch.Tensor = batch[name]
    return found


def _as_targets(found: torch.Tensor, wanted: torch.Tensor, target: str) -> torch.Tensor:
    """Return the model's output in the shape of the targets: `(n, 1)` becomes `(n,)`."""
    if found.numel() != wanted.numel():
        raise ValueError(
            f"model: expected outputs of shape {tuple(wanted.shape)}, as batch[{target!r}], got "
            f"{tuple(found.shape)}. Give the model one output per target"
        )
    return found.reshape(wanted.shape)


def _mean(each: torch.Tensor, batch: Any) -> Mean:
    weight = batch.get("weight")
    if weight is None:
        return Mean(each.sum(), torch.tensor(len(each), device=each.device))
    return Mean((each * weight).sum(), weight.sum())
