"""Retrieval task: embeddings by which a query finds its own document among others.

Read next: `ftrain/tasks/losses/embeddings.py`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from ftrain.tasks import losses, metrics
from ftrain.tasks.losses._batches import Loss
from ftrain.tasks.losses.embeddings import pairs
from ftrain.tasks.recipes.task import Task

__all__ = ["retrieval"]


def retrieval(
    *,
    first: str | int = 0,
    second: str | int = 1,
    temperature: float = 0.07,
    logit_scale: str | None = None,
    symmetric: bool = True,
    k: int = 5,
) -> Task:
    """Return the retrieval task: find each query's own document among the documents of a batch.

    The loss is `losses.info_nce`. Its negatives are the other rows of the batch, and evaluation ranks
    the document among these rows too, so loss and metrics depend on the batch size. Merged over batches,
    they are means over queries, each compared with the documents of its own batch. `accumulate` changes
    the loss, and warns; use `grad_cache` for batches that do not fit in memory.

    Args:
        first: the index or name of the first embedding (the query) in the outputs of the model.
        second: the index or name of the second embedding (the document).
        temperature: the divisor of the scores; not used with `logit_scale`.
        logit_scale: the name of a trained 0-d parameter of the model, the logarithm of one over the
            temperature, as in CLIP.
        symmetric: average both directions in the loss.
        k: the `K` of the metric `recall_at_K`, the share of queries whose document is among the best
            `k`.

    Returns:
        A `Task` with the metrics `mean_reciprocal_rank`, `recall_at_1` and `recall_at_K`.

    Raises:
        ValueError: `k` is less than 2.

    Example:
        >>> retrieval(k=10).metrics
        ('mean_reciprocal_rank', 'recall_at_1', 'recall_at_10')
    """
    if k < 2:
        raise ValueError(
            f"k: expected 2 or more, because recall_at_1 is always evaluated, got {k}. Write k=5."
        )
    options: Any = {
        "first": first,
        "second": second,
        "temperature": temperature,
        "logit_scale": logit_scale,
        "symmetric": symmetric,
    }

    def eval_fn(model: nn.Module, batch: Any) -> Loss:
        loss, scores, weights = pairs(model, batch, **options)
        partners = torch.arange(len(scores), device=scores.device)
        return loss, {
            "mean_reciprocal_rank": metrics.mean_reciprocal_rank(
                scores, partners, row_weights=weights
            ),
            **{
                f"recall_at_{most}": metrics.recall_at_k(
                    scores, partners, k=most, row_weights=weights
                )
                for most in (1, k)
            },
        }

    loss_fn = functools.partial(losses.info_nce, **options)
    return Task(loss_fn, eval_fn, ("mean_reciprocal_rank", "recall_at_1", f"recall_at_{k}"))
