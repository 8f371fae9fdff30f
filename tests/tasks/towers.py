"""Two-tower models, their batches, and their losses in one graph, for the tests of `grad_cache`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim
from ftrain.tasks import functional, grad_cache
from ftrain.testing import assert_close_norm


class Towers(nn.Module):
    """A tower for queries and one for documents, the same one if `shared`, and a trained temperature."""

    def __init__(
        self,
        *,
        shared: bool = False,
        norm: bool = False,
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.query = tower(norm, dropout)
        self.document = self.query if shared else tower(norm, dropout)
        self.log_temperature = nn.Parameter(torch.tensor(-0.5))
        self.to(dtype)

    def forward(self, query: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
        return self.query(query), self.document(document)


def tower(norm: bool, dropout: float) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(5, 6)]
    layers += [nn.BatchNorm1d(6)] if norm else []
    layers += [nn.GELU()]
    layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(6, 4))


def batch(
    rows: int, negatives: int = 0, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Tensor]:
    """Return queries, and documents of which the last `negatives` belong to none of them."""
    draws = torch.Generator().manual_seed(seed)
    return {
        "query": torch.randn(rows, 5, generator=draws, dtype=dtype),
        "document": torch.randn(rows + negatives, 5, generator=draws, dtype=dtype),
    }


def of_embeddings(model: Any, embeddings: Any, batch: Any) -> Any:
    return functional.info_nce(
        embeddings["query"], embeddings["document"], temperature=model.log_temperature.exp()
    )


def whole(model: Any, batch: Any) -> Any:
    """Return the loss of the towers of the whole batch."""
    query, document = model(batch["query"], batch["document"])
    return of_embeddings(model, {"query": query, "document": document}, batch)


def in_chunks(size: int) -> Any:
    """Return the loss whose towers see `size` rows at a time, in one graph, without dropout."""

    def loss_fn(model: Any, batch: Any) -> Any:
        query = torch.cat([model.query(x) for x in batch["query"].split(size)])
        document = torch.cat([model.document(x) for x in batch["document"].split(size)])
        return of_embeddings(model, {"query": query, "document": document}, batch)

    return loss_fn


LIMIT = {torch.float64: 1e-12, torch.float32: 4e-6}
ENCODERS = {"query": "query", "document": "document"}


def cached(size: Any, loss: Any = of_embeddings, encoders: Any = None) -> Any:
    return grad_cache(encoders or ENCODERS, loss, chunk_size=size)


def one_graph(loss_fn: Any) -> Any:
    """Return the loss as a plain function, which a step differentiates in one graph."""
    return lambda model, batch: loss_fn(model, batch)


def results(model: Any, batch: Any, *losses: Any, **options: Any) -> list[Any]:
    """Return the gradients and by-products of each loss at the same state."""
    made = [ftrain.make_steps(model, fn, optim.sgd(0.1), **options) for fn in losses]
    state = made[0].init_state(3)
    return [steps.train_step.gradients(state, batch) for steps in made]


def assert_equal(found: Any, expected: Any, limit: float) -> None:
    assert_close_norm(found.grads, expected.grads, limit)
    assert found.grads.keys() == expected.grads.keys()
    loss = expected.metrics["loss"].item()
    assert found.metrics["loss"].item() == pytest.approx(loss, rel=limit)
