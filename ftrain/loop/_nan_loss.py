"""Messages about a loss that is NaN although gradients or parameters are finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ftrain.core import tree

__all__ = ["nan_eval_loss_message", "nan_loss_message"]

_CAUSE = (
    "Probably a batch or micro-batch has no label: the mean over 0 labels is NaN, and so is "
    "Mean(loss * n, n) with n = 0. Write Mean(total, n) with the sum of the losses, such as "
    "F.cross_entropy(..., reduction='sum')"
)


def nan_loss_message(row: Mapping[str, float]) -> str | None:
    """Return a message for a log row with a NaN loss and finite gradients; else `None`."""
    if not math.isnan(row.get("loss", 0.0)) or not math.isfinite(row.get("grad_norm", math.nan)):
        return None
    return f"the training loss is NaN although its gradients are finite. {_CAUSE}"


def nan_eval_loss_message(row: Mapping[str, float], state: Any) -> str | None:
    """Return a message for an evaluation with a NaN loss and finite parameters; else `None`."""
    if not math.isnan(row.get("loss", 0.0)):
        return None
    params = tree.leaves(getattr(state, "params", ()))
    floats = [
        leaf for leaf in params if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    ]
    if not floats or not all(bool(leaf.isfinite().all()) for leaf in floats):
        return None
    return f"the evaluation loss is NaN although the parameters are finite. {_CAUSE}"
