"""Operator that raises if constants of a graph, such as the shapes of a batch, differ between ranks."""

from __future__ import annotations

import torch

__all__ = ["require_same"]


@torch.library.custom_op(
    "ftrain::require_same", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def require_same(values: torch.Tensor, table: torch.Tensor, what: str) -> torch.Tensor:
    """Return a copy of `values` if the rows of `table` are equal; raise on every rank otherwise.

    Args:
        values: any tensor.
        table: int64, `(ranks, numbers)`, gathered from all ranks.
        what: the name of the numbers, for the message.

    The check waits for the device.
    """
    if not bool((table == table[0]).all()):
        rows = ", ".join(f"rank {i}: {row}" for i, row in enumerate(table.tolist()))
        raise ValueError(
            f"ranks differ in {what}: expected the same numbers on all ranks, got {rows}. Give each "
            "rank a batch of the same shapes."
        )
    return values.clone()


@require_same.register_fake
def _(values: torch.Tensor, table: torch.Tensor, what: str) -> torch.Tensor:
    return torch.empty_like(values)
