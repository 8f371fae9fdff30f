"""Contrastive losses, which compare the embeddings of a batch with each other.

Read next: `_batches.py`.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftrain.core._compares_rows import compares_rows
from ftrain.core.metrics import Mean
from ftrain.tasks import functional, metrics
from ftrain.tasks.adapters import call_model, find_output
from ftrain.tasks.grad_cache import GradCache, grad_cache
from ftrain.tasks.losses._batches import Loss, entry, prediction, row_weights

__all__ = ["cached_info_nce", "info_nce", "pairs", "supervised_contrastive", "triplet"]


@compares_rows
def info_nce(
    model: nn.Module,
    batch: Any,
    *,
    first: str | int = 0,
    second: str | int = 1,
    temperature: float = 0.07,
    logit_scale: str | None = None,
    symmetric: bool = True,
) -> Loss:
    """Return the InfoNCE loss of pairs of inputs, and the recall at 1 of the second input of each pair.

    Micro-batches have fewer negatives than the batch, so `accumulate` changes this loss, and warns.
    `grad_cache` keeps all negatives of a batch that does not fit in memory.

    Args:
        model: gives two embeddings `(n, width)`: a tuple, or named outputs.
        batch: a tuple of the model's arguments, or entries with the names of its arguments. Rows of
            `weight` 0, such as padding, are left out; other weights count as 1.
        first: the index or name of the first embedding.
        second: the index or name of the second embedding.
        temperature: the divisor of the scores; not used with `logit_scale`.
        logit_scale: the name of a trained 0-d parameter of the model, the logarithm of one over the
            temperature, as in CLIP.
        symmetric: True to average both directions; False: only find the second input for each first one.
    """
    options: Any = {"temperature": temperature, "logit_scale": logit_scale, "symmetric": symmetric}
    loss, scores, weights = pairs(model, batch, first=first, second=second, **options)
    return loss, _recall(scores, weights)


def pairs(
    model: nn.Module,
    batch: Any,
    *,
    first: str | int,
    second: str | int,
    temperature: float,
    logit_scale: str | None,
    symmetric: bool,
) -> tuple[Mean, Tensor, Tensor | None]:
    """Return the InfoNCE loss, the cosine similarities of all pairs, and row weights of 0 and 1.

    A row of weight 0 is not a negative for any row: its column of cosines is minus infinity.
    """
    outputs = call_model(model, batch, has_labels=False)
    one, two = find_output(outputs, first), find_output(outputs, second)
    heat, mask = _temperature(model, temperature, logit_scale), _counted(batch)
    loss = functional.info_nce(one, two, temperature=heat, symmetric=symmetric, mask=mask)
    return loss, *_cosines(one, two, mask)


def cached_info_nce(
    *,
    first: str = "query",
    second: str = "document",
    chunk_size: int = 64,
    temperature: float = 0.07,
    logit_scale: str | None = None,
    symmetric: bool = True,
) -> GradCache:
    """Return an InfoNCE loss function for large batches, which encodes one chunk of rows at a time.

    This function builds a loss function; a configuration names it like any loss: `loss:
    cached_info_nce`. Only the activations and scores of `chunk_size` rows are in memory at a time. The
    recall, which needs the scores of all rows, is a metric of evaluations only.

    Args:
        first: the name of a submodule or method of the model that gives embeddings `(n, width)`, and of
            the entry of the batch that it encodes.
        second: the same for the other embedding.
        chunk_size: the number of rows that are encoded at a time.
        temperature: see `info_nce`.
        logit_scale: see `info_nce`.
        symmetric: see `info_nce`.

    Example:
        >>> import ftrain
        >>> from ftrain import optim, tasks
        >>> loss_fn = cached_info_nce(chunk_size=16, logit_scale="logit_scale")
        >>> init_state, train_step, _ = ftrain.make_steps(
        ...     lambda: tasks.TwoTower(100), loss_fn, optim.adamw(1e-3)
        ... )
        >>> batch = {"query": torch.ones(64, 5).long(), "document": torch.ones(64, 9).long()}
        >>> state, metrics = train_step(init_state(0), batch)
    """

    def loss(model: nn.Module, embeddings: Any, batch: Any) -> Any:
        one, two = find_output(embeddings[first]), find_output(embeddings[second])
        heat = _temperature(model, temperature, logit_scale)
        mask = _counted(batch)
        found = functional.info_nce(
            one, two, temperature=heat, symmetric=symmetric, mask=mask, chunk_size=chunk_size
        )
        return found if model.training else (found, _recall(*_cosines(one, two, mask)))

    return grad_cache({first: first, second: second}, loss, chunk_size=chunk_size)


@compares_rows
def supervised_contrastive(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int = "x",
    target: str | int = "y",
    temperature: float = 0.1,
) -> Mean:
    """Return the supervised contrastive loss: rows of the same class are positives.

    Micro-batches have fewer negatives than the batch, so `accumulate` changes this loss, and warns.
    `grad_cache` keeps all negatives of a batch that does not fit in memory.

    Args:
        model: gives embeddings `(n, width)`.
        batch: the targets are classes `(n,)`. Rows of `weight` 0, such as padding, are left out; other
            weights count as 1.
        input: the name of the model's input in the batch.
        target: the name of the classes.
        temperature: the divisor of the scores.
    """
    found = prediction(model, batch, input, target)
    return functional.supervised_contrastive(
        found.output, found.labels, temperature=temperature, mask=_counted(batch)
    )


def triplet(
    model: nn.Module,
    batch: Any,
    *,
    anchor: str | int = "anchor",
    positive: str | int = "positive",
    negative: str | int = "negative",
    margin: float = 1.0,
) -> Loss:
    """Return the triplet loss, and the share of anchors nearer to the positive than to the negative.

    Args:
        model: gives embeddings `(n, width)` of each of the three entries.
        batch: three named entries; a `weight` `(n,)` of rows is taken into account.
        anchor: the name of the entry with the anchors.
        positive: the name of the entry that should be near the anchor.
        negative: the name of the entry that should be far from the anchor.
        margin: the smallest difference of the two distances for which the loss is 0.
    """
    names = {"anchor": anchor, "positive": positive, "negative": negative}
    a, p, n = (find_output(model(entry(batch, name, at))) for at, name in names.items())
    weights = row_weights(batch)
    distances = -torch.stack([F.pairwise_distance(a, x) for x in (p, n)], 1).detach()
    nearer = torch.zeros(len(a), dtype=torch.long, device=a.device)
    return functional.triplet(a, p, n, margin=margin, row_weights=weights), {
        "accuracy": metrics.accuracy(distances, nearer, row_weights=weights)
    }


def _counted(batch: Any) -> Tensor | None:
    weights = row_weights(batch)
    return None if weights is None else weights != 0


def _temperature(model: nn.Module, temperature: float, logit_scale: str | None) -> float | Tensor:
    if logit_scale is None:
        return temperature
    return (-_parameter(model, logit_scale)).exp()


def _cosines(one: Tensor, two: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the cosines of all pairs, minus infinity for a masked column, and the row weights."""
    scores = F.normalize(one.detach(), dim=-1) @ F.normalize(two.detach(), dim=-1).T
    if mask is None:
        return scores, None
    return scores.masked_fill(~mask, -torch.inf), mask.to(scores.dtype)


def _recall(scores: Tensor, weights: Tensor | None) -> dict[str, Mean]:
    """Return the share of rows whose partner has the largest score, as a metric."""
    partners = torch.arange(len(scores), device=scores.device)
    return {"recall_at_1": metrics.recall_at_k(scores, partners, k=1, row_weights=weights)}


def _parameter(model: nn.Module, name: str) -> Tensor:
    """Return the parameter at a path, or the plain tensor that a step has put in its place."""
    try:
        found: Tensor = operator.attrgetter(name)(model)
    except AttributeError:
        known = ", ".join(each for each, x in model.named_parameters() if not x.ndim) or "none"
        raise ValueError(
            f"logit_scale: expected the name of a 0-d parameter of the model, got {name!r}; it has "
            f"{known}. Register one: self.{name} = nn.Parameter(torch.tensor(2.6593))."
        ) from None
    return found
