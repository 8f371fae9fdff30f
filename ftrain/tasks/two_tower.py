"""Two-tower encoder of tokens, whose embeddings a contrastive loss compares.

Read next: `grad_cache.py`, which trains it with batches that do not fit in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["TokenTower", "TwoTower"]


class TwoTower(nn.Module):
    """Encoders of queries and of documents, and the scale of their scores.

    Args:
        vocabulary: the number of token ids; id 0 is padding.
        width: the width of the token embeddings, which both towers share.
        outputs: the width of the embeddings of queries and documents.
        dropout: the probability of dropout of token embeddings and of hidden values.
        temperature: the initial temperature of the scores. The parameter `logit_scale` is the logarithm
            of one over the temperature, as in CLIP.

    Example:
        >>> model = TwoTower(100, width=8, outputs=4)
        >>> one, two = model(torch.ones(3, 5).long(), torch.ones(3, 9).long())
        >>> one.shape, two.shape
        (torch.Size([3, 4]), torch.Size([3, 4]))
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 128,
        outputs: int = 128,
        dropout: float = 0.1,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        tokens = nn.Embedding(vocabulary, width, padding_idx=0)
        self.query = TokenTower(tokens, outputs, dropout)
        self.document = TokenTower(tokens, outputs, dropout)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, query: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings `(n, outputs)` of token ids `(n, length)` of both sides."""
        return self.query(query), self.document(document)


class TokenTower(nn.Module):
    """Encoder of a bag of tokens: their mean, weighted by learned attention, and a hidden layer.

    Args:
        tokens: token embeddings, which towers may share; id 0 is padding.
        outputs: the width of the result.
        dropout: the probability of dropout of token embeddings and of hidden values.
    """

    def __init__(self, tokens: nn.Embedding, outputs: int, dropout: float) -> None:
        super().__init__()
        width = tokens.embedding_dim
        self.tokens = tokens
        self.attention = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, outputs),
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Return an embedding `(n, outputs)` of each row of token ids `(n, length)`."""
        x = self.dropout(self.tokens(ids))
        scores = self.attention(x).squeeze(-1)
        # A finite minimum, so that a row with only padding has an embedding instead of NaN.
        weights = scores.masked_fill(ids == 0, torch.finfo(scores.dtype).min).softmax(-1)
        embedding: Tensor = self.head((weights.unsqueeze(-2) @ x).squeeze(-2))
        return embedding
