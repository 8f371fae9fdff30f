"""Messages about a NaN loss despite finite gradients or parameters, and about non-finite batches."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch

from ftrain.core import tree
from ftrain.loop._batches import Batches, opened
from ftrain.loop._first_nonfinite import nonfinite_leaf

__all__ = ["nan_eval_loss_message", "nan_loss_message", "nonfinite_batch"]

_EVALUATION = "the evaluation loss is NaN although the parameters are finite."

_CAUSE = (
    "Probably a batch or micro-batch has no label: the mean over 0 labels is NaN, and so is "
    "Mean(loss * n, n) with n = 0. Write Mean(total, n) with the sum of the losses, such as "
    "F.cross_entropy(..., reduction='sum')."
)


def nan_loss_message(row: Mapping[str, float], batch: Any) -> str | None:
    """Return a message for a log row with a NaN loss and finite gradients; else `None`.

    Args:
        row: the metrics of a log window.
        batch: the last batch of the window, searched for the cause; `None`: not searched.
    """
    if not math.isnan(row.get("loss", 0.0)) or not math.isfinite(row.get("grad_norm", math.nan)):
        return None
    cause = nonfinite_batch(batch) or _CAUSE
    return f"the training loss is NaN although its gradients are finite. {cause}"


def nan_eval_loss_message(
    row: Mapping[str, float], state: Any, data: Batches, given: Collection[str]
) -> str | None:
    """Return a message for an evaluation with a NaN loss and finite parameters; else `None`.

    Args:
        row: the metrics of the evaluation.
        state: the training state.
        data: the batches, read once more for the cause, up to the first that is not finite.
        given: the messages of earlier notices: if one reports a NaN evaluation loss, the data are not
            read again, and the result is `None`.
    """
    if not math.isnan(row.get("loss", 0.0)) or any(x.startswith(_EVALUATION) for x in given):
        return None
    params = tree.leaves(getattr(state, "params", ()))
    floats = [
        leaf for leaf in params if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    ]
    if not floats or not all(bool(leaf.isfinite().all()) for leaf in floats):
        return None
    with opened(data, data.start(), 1) as batches:
        found = (nonfinite_batch(batch, i) for i, (batch, _) in enumerate(batches))
        return f"{_EVALUATION} {next(filter(None, found), _CAUSE)}"


def nonfinite_batch(batch: Any, position: int | None = None) -> str | None:
    """Describe the first non-finite tensor of a batch, with a remedy; `None` if all are finite.

    Args:
        batch: a tree of tensors.
        position: the number of the batch in its data, from 0.

    Example:
        >>> nonfinite_batch({"x": torch.tensor([1.0, math.nan]), "y": torch.tensor([0, 1])}, 3)
        "batch['x'] (batch 3) holds 1 NaN of 2 values. Correct these values, or leave out their rows."
    """
    found = nonfinite_leaf("batch", batch, "" if position is None else f" (batch {position})")
    if found is None:
        return None
    unless = "" if "NaN" in found else ", unless they are a mask"
    return f"{found}. Correct these values, or leave out their rows{unless}."
