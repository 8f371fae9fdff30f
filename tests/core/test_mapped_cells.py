"""Recurrent cells under vmap, for which torch has no batching rule."""

from __future__ import annotations

import torch
from torch import nn

import ftrain
from ftrain import testing
from ftrain.core import random, tree

KEY = random.key(0)


def test_vmapped_lstm_cell_rows_match_single_lstm_cells() -> None:
    """Products are summed in another order; the error stayed below 1e-6."""
    apply = ftrain.bind(nn.LSTMCell(3, 4))
    params, buffers = apply.init(KEY)
    rows = {name: torch.stack([p, 2 * p]) for name, p in params.items()}
    x, carried = torch.ones(2, 3), (torch.ones(2, 4), torch.full((2, 4), 0.5))

    def loss(params: dict[str, torch.Tensor]) -> torch.Tensor:
        (hidden, cell), _ = apply(params, buffers, KEY, x, carried)
        return hidden.square().sum() + cell.sum()

    step = ftrain.value_and_grad(loss)
    mapped = torch.vmap(step)(rows)
    for i in range(2):
        row = tree.map(lambda t: t[i], mapped)  # noqa: B023
        testing.assert_close_norm(row, step({name: p[i] for name, p in rows.items()}), 1e-6)
