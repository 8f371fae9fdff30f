"""Rows that only fill a batch stay out of statistics over a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import data, optim
from ftrain.loop import Trainer


def steps(*layers: nn.Module) -> Any:
    def loss_fn(model: Any, batch: Any) -> Any:
        each = (model(batch["x"]) - 1.0).square().mean(1)
        return ftrain.Mean((each * batch["weight"]).sum(), batch["weight"].sum())

    return ftrain.make_steps(nn.Sequential(nn.Linear(2, 2), *layers), loss_fn, optim.sgd(0.1))


def loader(n: int, **options: Any) -> data.Loader:
    x = torch.arange(2.0 * n).reshape(n, 2)
    return data.Loader({"x": x}, 4, shuffle=False, last="pad", **options)


@pytest.mark.parametrize("compiled", [False, {"backend": "eager"}])
def test_padding_is_refused_where_a_module_has_batch_statistics(compiled: Any) -> None:
    made = steps(nn.BatchNorm1d(2))
    said = r"adds 2 rows of weight zero.*in training: '1'\. Write last=\"drop\""
    with pytest.raises(ValueError, match=said):
        Trainer(made, compile=compiled).fit(made.init_state(0), loader(6), epochs=1)


def test_padding_is_allowed_where_no_row_is_added_or_none_is_seen() -> None:
    frozen = nn.BatchNorm1d(2).eval()
    for n, layer in ((8, nn.BatchNorm1d(2)), (6, nn.LayerNorm(2)), (6, frozen)):
        made = steps(layer)
        result = Trainer(made, compile=False).fit(made.init_state(0), loader(n), epochs=1)
        assert result.step == 2


def test_evaluations_pad_as_they_like() -> None:
    made = steps(nn.BatchNorm1d(2))
    found = Trainer(made, compile=False).evaluate(made.init_state(0), loader(6))
    assert found.samples == 8


def test_loaders_say_how_many_rows_they_add() -> None:
    assert [loader(n).padding for n in (1, 4, 5, 7)] == [3, 0, 3, 1]
    assert loader(6, ranks=2).padding == 2
    assert data.Loader({"x": torch.zeros(6)}, 4, shuffle=False, last="keep").padding == 0
