"""Contrastive losses, which compare each embedding with the others of its batch.

A row's negatives are the other rows of the batch. Micro-batches have smaller sets of negatives, so their
mean is not the loss of the batch. Only `triplet` is exact for any division of a batch.

Read next: `preference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ftrain.core.metrics import Mean
from ftrain.tasks._weighted import weighted

__all__ = ["info_nce", "supervised_contrastive", "triplet"]


def info_nce(
    queries: Tensor,
    documents: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    symmetric: bool = True,
    normalize: bool = True,
    mask: Tensor | None = None,
    chunk_size: int = 0,
) -> Mean:
    r"""Return the InfoNCE loss: the mean cross-entropy of each query's document among all documents.

    The loss is in nats.

    $$-\log \frac{e^{q_i \cdot d_i / \tau}}{\sum_j e^{q_i \cdot d_j / \tau}}$$

    Args:
        queries: `(n, width)`.
        documents: `(m, width)`, `m >= n`: row `i` is the document of query `i`; rows from `n` on are
            negatives for all queries.
        temperature: a number, or a 0-d tensor, such as `log_temperature.exp()` of a parameter.
        symmetric: average the loss of queries among documents and of documents `0 ... n - 1` among
            queries, as CLIP does (arXiv 2103.00020). If False, only queries among documents (arXiv
            1807.03748).
        normalize: divide each row by its norm.
        mask: bool `(n,)`: True for valid pairs; other pairs are ignored, also as negatives, and may have
            any values.
        chunk_size: the number of rows whose scores are in memory at a time; the backward pass computes
            them again. 0 keeps the scores of all rows. `torch.func` transforms and `torch.vmap` called
            outside of ftrain need 0, because they do not support checkpointing.

    Raises:
        ValueError: the shapes do not fit; the chunk size is negative.

    Example:
        >>> info_nce(torch.eye(2), torch.eye(2), temperature=1.0).value
        tensor(0.3133)
    """
    n = len(queries)
    if (
        queries.ndim != 2
        or documents.ndim != 2
        or len(documents) < n
        or documents.shape[1] != queries.shape[1]
    ):
        raise ValueError(
            f"documents: expected (m, width), m >= n, for queries (n, width), got "
            f"{tuple(documents.shape)} for {tuple(queries.shape)}. Give every query a document."
        )
    if chunk_size < 0:
        raise ValueError(
            f"chunk_size: expected a number of rows or 0, got {chunk_size}. Write chunk_size=256."
        )
    device = queries.device
    partners = torch.arange(n, device=device)
    there = torch.ones(n, dtype=torch.bool, device=device) if mask is None else mask
    columns = F.pad(there, (0, len(documents) - n), value=True)
    if mask is not None:
        queries, documents = _only(queries, there), _only(documents, columns)
    if normalize:
        queries, documents = F.normalize(queries, dim=-1), F.normalize(documents, dim=-1)
    if chunk_size:
        values = _in_chunks(queries, documents, columns, there, temperature, chunk_size)
        if symmetric:
            back = _in_chunks(documents[:n], queries, there, there, temperature, chunk_size)
            values = (values + back) / 2
        return weighted(values, there)
    scores = queries @ documents.T / temperature
    values = _among(scores, columns, there, partners)
    if symmetric:
        values = (values + _among(scores[:, :n].T, there, there, partners)) / 2
    return weighted(values, there)


def supervised_contrastive(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    mask: Tensor | None = None,
) -> Mean:
    r"""Return the mean contrastive loss with all rows of the same class as positives (arXiv 2004.11362).

    $$\frac{-1}{|P(i)|} \sum_{p \in P(i)} \log \frac{e^{z_i \cdot z_p / \tau}}{\sum_{a \neq i} e^{z_i
    \cdot z_a / \tau}}$$

    A row that is alone in its class has weight 0, and is a negative for all other rows.

    Args:
        embeddings: `(n, width)`.
        labels: classes `(n,)`.
        temperature: a number, or a 0-d tensor.
        normalize: divide each row by its norm.
        mask: bool `(n,)`: True for valid rows; no row is compared with the other rows, which may have
            any values.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> supervised_contrastive(torch.ones(4, 2), torch.tensor([0, 0, 1, 1])).value
        tensor(1.0986)
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels: expected (n,) for embeddings (n, width), got {tuple(labels.shape)} for "
            f"{tuple(embeddings.shape)}. Give each view of a sample a row of its own."
        )
    if mask is not None:
        embeddings = _only(embeddings, mask)
    if normalize:
        embeddings = F.normalize(embeddings, dim=-1)
    scores = embeddings @ embeddings.T / temperature
    others = ~torch.eye(len(labels), dtype=torch.bool, device=scores.device)
    if mask is not None:
        others = others & mask & mask[:, None]
    positives = others & (labels[:, None] == labels)
    counts = positives.sum(1)
    # A row without any other valid row keeps its finite scores, because infinities would make its
    # gradient NaN; its weight is 0.
    seen = scores.masked_fill(~others & others.any(1, keepdim=True), -torch.inf)
    log_p = (seen - seen.logsumexp(1, keepdim=True)).masked_fill(~positives, 0.0)
    return weighted(-log_p.sum(1) / counts.clamp(min=1), counts > 0)


def _only(rows: Tensor, mask: Tensor) -> Tensor:
    """Set rows outside of the mask to 0; a multiplication by 0 would keep their NaNs."""
    return rows.masked_fill(~mask[:, None], 0.0)


def triplet(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    margin: float = 1.0,
    p: float = 2.0,
    swap: bool = False,
    row_weights: Tensor | None = None,
) -> Mean:
    r"""Return the mean triplet margin loss, as `F.triplet_margin_loss` computes it.

    $$\max(0, |a - p| - |a - n| + m)$$

    for anchors $a$, positives $p$ and negatives $n$.

    Args:
        anchors: `(n, width)`.
        positives: `(n, width)`.
        negatives: `(n, width)`.
        margin: the term $m$, positive.
        p: the order of the norm.
        swap: True to use the negative's distance to the positive if that is smaller than to the anchor.
        row_weights: `(n,)`.

    Example:
        >>> triplet(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])).value < 1e-5
        tensor(True)
    """
    values = F.triplet_margin_loss(
        anchors, positives, negatives, margin=margin, p=p, swap=swap, reduction="none"
    )
    return weighted(values, row_weights)


def _among(scores: Tensor, columns: Tensor, rows: Tensor, partners: Tensor) -> Tensor:
    """Return each row's cross-entropy for class `partners[row]`, over the columns of a mask only."""
    seen = scores.masked_fill(~columns & rows[:, None], -torch.inf)
    return F.cross_entropy(seen, partners, reduction="none")


def _in_chunks(
    one: Tensor,
    others: Tensor,
    columns: Tensor,
    rows: Tensor,
    temperature: float | Tensor,
    chunk_size: int,
) -> Tensor:
    """Return each row's cross-entropy, with the scores of one chunk of rows in memory at a time."""

    def values(one: Tensor, others: Tensor, rows: Tensor, partners: Tensor, heat: Any) -> Tensor:
        return _among(one @ others.T / heat, columns, rows, partners)

    chunks = (
        torch.split(x, chunk_size) for x in (one, rows, torch.arange(len(one), device=one.device))
    )
    found = [
        checkpoint(
            values,
            part,
            others,
            is_there,
            partners,
            temperature,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for part, is_there, partners in zip(*chunks, strict=True)
    ]
    return torch.cat(found)
