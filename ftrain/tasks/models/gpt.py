"""GPT: a decoder of tokens with GPT-2's layers, without biases, as in nanoGPT.

Read next: `text_cnn.py`.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GPT"]


class GPT(nn.Module):
    """Decoder of `layers` blocks with pre-norm and tied embedding and output weights.

    `forward` takes tokens, int64 `(n, length)` with `length` at most `context`, and returns the logits
    of the next tokens, `(n, length, vocabulary)`.

    Args:
        vocabulary: number of different tokens.
        context: the largest length.
        layers: number of blocks.
        heads: number of attention heads; a divisor of `width`.
        width: width of the embeddings.
        dropout: probability of dropout after the embeddings, in attention, and after each part of a
            block.

    Example:
        >>> import torch
        >>> GPT(11, context=8, layers=1, heads=2, width=8)(torch.zeros(2, 8, dtype=torch.int64)).shape
        torch.Size([2, 8, 11])
    """

    def __init__(
        self,
        vocabulary: int,
        context: int = 64,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(_Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Each block adds twice to the residual stream: these initial weights keep its variance
                # constant.
                shrink = math.sqrt(2 * layers) if name.endswith("out.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / shrink)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token at each position."""
        length, context = tokens.shape[1], len(self.positions.weight)
        if length > context:
            raise ValueError(
                f"tokens: expected at most {context} in a row, the context of the model, got {length}. "
                "Cut them, or build the model with a larger context."
            )
        x = self.tokens(tokens) + self.positions.weight[:length]
        logits: Tensor = self.head(self.norm(self.blocks(self.dropout(x))))
        return logits


class _Block(nn.Module):
    """Attention, then an MLP, each with a pre-norm and a residual connection."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = _Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = _MLP(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class _Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        p = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        mixed: Tensor = self.dropout(self.out(y.transpose(1, 2).flatten(2)))
        return mixed


class _MLP(nn.Module):
    """Two linear layers with a hidden width of four times the input."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.out(F.gelu(self.up(x))))
        return y
