"""Conversion of the outputs of a model to predictions of a table's target column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["predictions"]


def predictions(
    outputs: Tensor, target: Mapping[str, Any], *, binary: bool = False
) -> dict[str, list[Any]]:
    """Return columns of predictions, `{name: values}`, for the rows of a table.

    Args:
        outputs: logits `(n, classes)`, or numbers `(n,)` or `(n, 1)`.
        target: `name`, and `classes` (their names) or, for a standardized number, `mean` and `scale`.
        binary: True if outputs `(n,)` or `(n, 1)` are logits of the second of two classes (default: "0",
            "1").

    Returns:
        For classes, a column `name` with the most likely class of each row, and for each class a column
        `p(CLASS)` of its probabilities. For numbers, a column `name` in the units of the table.

    Raises:
        ValueError: the outputs have another shape.

    Example:
        >>> predictions(torch.tensor([[1.5], [0.0]]), {"name": "price", "mean": 10.0, "scale": 2.0})
        {'price': [13.0, 10.0]}
        >>> predictions(torch.tensor([[0.0]]), {"name": "kind", "classes": ["cat", "dog"]}, binary=True)
        {'kind': ['cat'], 'p(cat)': [0.5], 'p(dog)': [0.5]}
    """
    outputs = outputs.double().cpu()
    name, classes = target["name"], target.get("classes", ["0", "1"] if binary else None)
    single = outputs.numel() == len(outputs)
    if classes is None and single:
        values = outputs.flatten() * target.get("scale", 1.0) + target.get("mean", 0.0)
        return {name: values.tolist()}
    if binary and single and len(classes) == 2:
        outputs = torch.stack([torch.zeros(len(outputs)), outputs.flatten()], dim=1)
    if classes is None or outputs.shape[1:] != (len(classes),):
        wanted = (
            "one number per row" if classes is None else f"logits of {len(classes)} classes per row"
        )
        raise ValueError(
            f"outputs: expected {wanted}, got shape {tuple(outputs.shape[1:])} per row. Change the "
            "last layer of the model."
        )
    columns = [f"p({one})" for one in classes]
    shares = outputs.softmax(1).T.tolist()
    likeliest = [classes[place] for place in outputs.argmax(1).tolist()]
    return {name: likeliest, **dict(zip(columns, shares, strict=True))}
