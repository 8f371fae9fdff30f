"""Convolutional network over tokens, for text classification.

Read next: `mlp.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TextCNN"]


class TextCNN(nn.Module):
    """Text classifier: convolutions of several sizes and max pooling over positions (arXiv 1408.5882).

    `forward` takes tokens, int64 `(n, length)` with at least as many tokens as the largest size, and
    returns logits `(n, classes)`.

    Args:
        vocabulary: number of different tokens.
        classes: number of classes.
        width: width of the embeddings and of the outputs of each convolution.
        sizes: kernel sizes of the convolutions, in tokens.
        dropout: probability of dropout before the last layer.

    Example:
        >>> TextCNN(256, 3, width=4)(torch.zeros(2, 9, dtype=torch.int64)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        width: int = 64,
        sizes: Sequence[int] = (3, 5, 7),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, size) for size in sizes)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width * len(sizes), classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of each text."""
        x = self.embed(tokens).transpose(1, 2)
        found = torch.cat([F.relu(each(x)).amax(2) for each in self.convolutions], 1)
        logits: Tensor = self.head(self.dropout(found))
        return logits
