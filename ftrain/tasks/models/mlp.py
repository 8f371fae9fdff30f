"""Multilayer perceptron, to try out data and settings.

Read next: `lenet.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

__all__ = ["mlp"]


def mlp(
    inputs: int, outputs: int, hidden: Sequence[int] = (64, 64), dropout: float = 0.0
) -> nn.Module:
    """Return a multilayer perceptron: linear layers with GELUs between them.

    Args:
        inputs: numbers in a sample; more than one axis of them is flattened.
        outputs: numbers to predict: classes, or values.
        hidden: widths of the layers between; none: a linear model.
        dropout: probability, after each hidden layer.

    Example:
        >>> mlp(4, 3, hidden=(8,))
        Sequential(
          (0): Flatten(start_dim=1, end_dim=-1)
          (1): Linear(in_features=4, out_features=8, bias=True)
          (2): GELU(approximate='none')
          (3): Linear(in_features=8, out_features=3, bias=True)
        )
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, narrow in pairwise((inputs, *hidden)):
        layers += [nn.Linear(wide, narrow), nn.GELU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear((inputs, *hidden)[-1], outputs))
