"""Multilayer perceptron, for trying out data and settings.

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
        inputs: number of features of a sample; samples with several axes are flattened.
        outputs: number of outputs: classes, or values to predict.
        hidden: widths of the hidden layers; without any, the model is linear.
        dropout: probability of dropout after each hidden layer.

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
