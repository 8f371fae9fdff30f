"""Models of two towers, their batches, and their losses in one graph, for the tests of GradCache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ftrain.tasks import functional


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
