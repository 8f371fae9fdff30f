"""Metrics of language models that are functions of their mean loss.

Read next: `rates.py`.
"""

from __future__ import annotations

import math

from torch import Tensor

from ftrain.core.metrics import Mean

__all__ = ["Perplexity", "bits_per_byte", "perplexity"]


class Perplexity(Mean):
    """Exponential of a mean loss in nats; fields as in `Mean`: total loss and total weight.

    >>> import torch
    >>> Perplexity(torch.tensor(2.0), torch.tensor(2)).value
    tensor(2.7183)
    """

    __slots__ = ()

    @property
    def value(self) -> Tensor:
        """Return `exp(total / weight)`; NaN if the total weight is 0."""
        return (self.total / self.weight).exp()


def perplexity(loss: Mean) -> Perplexity:
    """Return the perplexity of a language model: the exponential of its mean cross-entropy in nats.

    The perplexity of merged batches is computed from all their tokens; it is not the mean of their
    perplexities.

    Args:
        loss: such as that of `causal_lm`, in nats, weighted by tokens, without label smoothing and
            z-loss.

    Example:
        >>> import torch
        >>> perplexity(Mean(torch.tensor(0.0), torch.tensor(3))).value
        tensor(1.)
    """
    return Perplexity(loss.total.detach(), loss.weight)


def bits_per_byte(loss: Mean, count: Tensor | int) -> Mean:
    """Return the bits that a language model needs for each byte of text.

    Use it to compare models with different tokenizers.

    Args:
        loss: in nats, of the tokens of a batch, without smoothing or z-loss.
        count: the number of bytes of the text that these tokens encode.

    Example:
        >>> import torch
        >>> bits_per_byte(Mean(torch.tensor(2.0).log() * 8, torch.tensor(2)), 4).value
        tensor(2.)
    """
    bits = loss.total.detach() / math.log(2)
    return Mean(bits, bits.new_zeros(()) + count)
