"""Losses of tokens: causal and masked language models.

Read next: `preference.py`, whose loss compares the log-probabilities of whole texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ftrain.core.metrics import Mean
from ftrain.tasks._weighted import over, places_in, weighted
from ftrain.tasks.functional.classification import cross_entropy

__all__ = ["causal_lm", "chunked_causal_lm", "masked_lm"]


def causal_lm(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    row_weights: Tensor | None = None,
) -> Mean:
    r"""Return the mean cross-entropy of each token given those before it, in nats.

    The logits at a place are compared with the label at the next place, as in Hugging Face's models; the
    weight is the number of labels that are not ignored.

    Args:
        logits: `(n, length, vocabulary)`.
        labels: int64 `(n, length)`, not shifted.
        ignore_index: labels that are ignored, such as padding.
        label_smoothing: the share of each label that is spread over the vocabulary.
        z_loss: the factor of $\log^2 \sum_v e^{x_v}$, added for each token (arXiv 2204.02311, 1e-4).
        row_weights: `(n,)`, or `(n, length)` of labels.

    Raises:
        ValueError: the shapes do not fit; on a CPU, a label is out of range.

    Example:
        >>> causal_lm(torch.zeros(1, 4, 8), torch.tensor([[1, 2, 3, -100]]))
        Mean(total=tensor(4.1589), weight=tensor(2))
    """
    _check(logits, labels, "logits")
    with places_in(labels, ignore_index):
        return masked_lm(
            logits[:, :-1],
            labels[:, 1:],
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            row_weights=_shifted(row_weights),
        )


def masked_lm(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    row_weights: Tensor | None = None,
) -> Mean:
    """Return the mean cross-entropy of the tokens that were masked, in nats.

    Args:
        logits: `(n, length, vocabulary)`.
        labels: int64 `(n, length)`: the token at each masked place, and `ignore_index` elsewhere.
        ignore_index: labels that are ignored.
        label_smoothing: the share of each label that is spread over the vocabulary.
        z_loss: see `causal_lm`.
        row_weights: `(n,)`, or `(n, length)` of labels.

    Raises:
        ValueError: the shapes do not fit; on a CPU, a label is out of range.

    Example:
        >>> masked_lm(torch.zeros(1, 3, 8), torch.tensor([[-100, 2, -100]])).value
        tensor(2.0794)
    """
    _check(logits, labels, "logits")
    found = cross_entropy(
        logits,
        labels,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        row_weights=row_weights,
    )
    if not z_loss:
        return found
    squares = torch.logsumexp(logits, -1).square()
    return Mean(
        found.total + z_loss * weighted(squares, labels != ignore_index, row_weights).total,
        found.weight,
    )


def chunked_causal_lm(
    hidden: Tensor,
    head: Tensor | Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    chunk_size: int = 1024,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    row_weights: Tensor | None = None,
) -> Mean:
    """Return `causal_lm` of `head(hidden)`, with the logits of one chunk of tokens in memory at a time.

    The backward pass computes the logits of each chunk again. `torch.func` transforms and `torch.vmap`
    called outside of ftrain need `chunk_size=0`, because they do not support checkpointing.

    Args:
        hidden: `(n, length, width)`: the output of the model before its head.
        head: weights `(vocabulary, width)`, or a function of hidden states, such as `model.lm_head`.
        labels: int64 `(n, length)`, not shifted.
        chunk_size: the number of tokens of a chunk; the last may have fewer. 0: all tokens.
        ignore_index: see `causal_lm`.
        label_smoothing: see `causal_lm`.
        z_loss: see `causal_lm`.
        row_weights: see `causal_lm`.

    Raises:
        ValueError: the shapes do not fit; on a CPU, a label is out of range.

    Example:
        >>> hidden, head = torch.ones(2, 5, 3), torch.zeros(8, 3)
        >>> chunked_causal_lm(hidden, head, torch.ones(2, 5).long(), chunk_size=3).value
        tensor(2.0794)
    """
    _check(hidden, labels, "hidden")
    if chunk_size < 0:
        raise ValueError(
            f"chunk_size: expected a number of tokens or 0, got {chunk_size}. Write "
            "chunk_size=1024."
        )
    states, wanted = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    weights = _shifted(row_weights)
    if weights is not None:
        weights = over(weights, labels[:, 1:]).expand_as(labels[:, 1:]).flatten()
    apply = (lambda x: F.linear(x, head)) if isinstance(head, Tensor) else head

    def loss(states: Tensor, wanted: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        found = masked_lm(
            apply(states)[None],
            wanted[None],
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            row_weights=None if weights is None else weights[None],
        )
        return found.total, found.weight

    if not chunk_size:
        with places_in(labels, ignore_index):
            return Mean(*loss(states, wanted, weights))
    pieces = zip(
        torch.split(states, chunk_size),
        torch.split(wanted, chunk_size),
        itertools.repeat(None) if weights is None else torch.split(weights, chunk_size),
        strict=False,
    )
    with places_in(labels, ignore_index):
        sums = [
            checkpoint(loss, *piece, use_reentrant=False, preserve_rng_state=False)
            for piece in pieces
        ]
    return Mean(
        torch.stack([total for total, _ in sums]).sum(),
        torch.stack([weight for _, weight in sums]).sum(),
    )


def _check(scores: Tensor, labels: Tensor, name: str) -> None:
    if scores.ndim != 3 or scores.shape[:2] != labels.shape:
        raise ValueError(
            f"{name}: expected (n, length, width) for labels (n, length), got {tuple(scores.shape)} and "
            f"labels {tuple(labels.shape)}. Reshape the one that differs."
        )


def _shifted(row_weights: Tensor | None) -> Tensor | None:
    return row_weights if row_weights is None or row_weights.ndim < 2 else row_weights[:, 1:]
