"""Test that padding rows are refused if a model's batch statistics would include them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import data, optim
from ftrain.loop import Trainer, callbacks, finders


def loss_fn(model: Any, batch: Any) -> Any:
    each = (model(batch["x"]) - 1.0).square().mean(1)
    return ftrain.Mean((each * batch["weight"]).sum(), batch["weight"].sum())


def steps(*layers: nn.Module, keeps_rate: bool = False) -> Any:
    optimizer = optim.sgd(0.1)
    if keeps_rate:
        optimizer = optim.with_hyperparams(optim.sgd, learning_rate=0.1)
    return ftrain.make_steps(nn.Sequential(nn.Linear(2, 2), *layers), loss_fn, optimizer)


def loader(n: int, **options: Any) -> data.Loader:
    x = torch.arange(2.0 * n).reshape(n, 2)
    return data.Loader({"x": x}, 4, shuffle=False, last_batch="pad", **options)


@pytest.mark.parametrize("compiled", [False, {"backend": "eager"}])
def test_fit_refuses_padding_for_modules_with_batch_statistics(compiled: Any) -> None:
    made = steps(nn.BatchNorm1d(2))
    said = r"adds 2 rows of weight zero.*in training: '1'\. Write last_batch=\"drop\""
    for train_data in (loader(6), data.Stream(loader(6))):
        with pytest.raises(ValueError, match=said):
            Trainer(made, compile=compiled).fit(made.init_state(0), train_data, epochs=1)


@pytest.mark.parametrize("compiled", [False, {"backend": "eager"}])
@pytest.mark.parametrize("keeps_rate", [False, True])
def test_learning_rate_finder_refuses_padding_for_modules_with_batch_statistics(
    compiled: Any, keeps_rate: bool
) -> None:
    made = steps(nn.BatchNorm1d(2), keeps_rate=keeps_rate)
    state = made.init_state(0)
    with pytest.raises(ValueError, match="adds 2 rows of weight zero.*in training: '1'"):
        finders.learning_rate(
            made if keeps_rate else lambda rate: steps(nn.BatchNorm1d(2)),
            state,
            loader(6),
            n_steps=10,
            compile=compiled,
        )
    made = steps(nn.LayerNorm(2), keeps_rate=True)
    found = finders.learning_rate(made, made.init_state(0), loader(6), n_steps=10, compile=False)
    assert found.trained


def test_monitored_steps_refuse_padding_for_modules_with_batch_statistics() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    made = callbacks.monitored_steps(net, loss_fn, optim.sgd(0.1), accumulate=2)
    with pytest.raises(ValueError, match="in training: '1'"):
        Trainer(made, compile=False).fit(made.init_state(0), loader(6), epochs=1)
    assert made.train_step.accumulate == 2


def test_fit_accepts_padding_if_no_row_is_added_or_no_module_has_batch_statistics() -> None:
    frozen = nn.BatchNorm1d(2).eval()
    for n, layer in ((8, nn.BatchNorm1d(2)), (6, nn.LayerNorm(2)), (6, frozen)):
        made = steps(layer)
        result = Trainer(made, compile=False).fit(made.init_state(0), loader(n), epochs=1)
        assert result.step == 2


def test_evaluate_accepts_padding() -> None:
    made = steps(nn.BatchNorm1d(2))
    found = Trainer(made, compile=False).evaluate(made.init_state(0), loader(6))
    assert found.samples == 8


def test_loader_padding_equals_the_number_of_added_rows() -> None:
    assert [loader(n).padding for n in (1, 4, 5, 7)] == [3, 0, 3, 1]
    assert loader(6, ranks=2).padding == 2
    assert data.Loader({"x": torch.zeros(6)}, 4, shuffle=False, last_batch="keep").padding == 0
