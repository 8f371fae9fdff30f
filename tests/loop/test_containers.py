"""Test that the loop accumulates, splits and evaluates batches in any container."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ftrain
from ftrain import optim, tree
from ftrain.data import Cursor
from ftrain.loop import LoopWarning, Trainer
from ftrain.loop._batches import joined
from tests.core.batches import FORMS, rows, steps

X, Y = rows(24)


class NoMemoryForMany:
    """A step that runs out of memory for more than a given number of rows."""

    def __init__(self, step: Any, most: int) -> None:
        self.step, self.most = step, most

    def __call__(self, state: Any, batch: Any) -> Any:
        parts = batch.batches if isinstance(batch, ftrain.MicroBatches) else (batch,)
        if any(len(x) > self.most for part in parts for x in tree.leaves(part)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.step(state, batch)


@functools.cache
def recovered(name: str) -> str:
    made = steps(1)
    data = [FORMS[name](x, y) for x, y in zip(X.split(8), Y.split(8), strict=True)]
    run = Trainer(NoMemoryForMany(made.train_step, 4), compile=False)
    with pytest.warns(LoopWarning, match="2 micro-batches"):
        result = run.fit(made.init_state(0), data, epochs=1)
    assert (result.train.samples, int(result.state.step)) == (24, 3)
    return tree.digest(result.state) + repr(result.train.metrics)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_steps_repeated_after_out_of_memory_agree_for_any_batch_container(name: str) -> None:
    assert recovered(name) == recovered("dict")


@functools.cache
def evaluated(name: str, most: int) -> str:
    made = steps(1)
    sizes = (8, 12, 4)
    data = [FORMS[name](x, y) for x, y in zip(X.split(sizes), Y.split(sizes), strict=True)]
    eval_step = NoMemoryForMany(made.eval_step, most)
    found = Trainer((made.train_step, eval_step), compile=False).evaluate(made.init_state(0), data)
    assert found.samples == 24
    return repr(found.metrics)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_evaluations_repeated_after_out_of_memory_agree_for_any_batch_container(name: str) -> None:
    for most in (4, 24):
        assert evaluated(name, most) == evaluated("dict", most)


def test_gradients_accumulate_over_list_batches_of_a_torch_dataloader() -> None:
    """torch's default collate returns a list of x and y."""
    made = steps(1)
    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    assert isinstance(next(iter(loader)), list)
    named = [{"x": x, "y": y} for x, y in loader]
    found = [
        tree.digest(
            Trainer(made, compile=False, accumulate=2).fit(made.init_state(0), data, epochs=1).state
        )
        for data in (loader, named)
    ]
    assert found[0] == found[1]
    cut = [
        tree.digest(Trainer(steps(2), compile=False).fit(made.init_state(0), data, epochs=1).state)
        for data in (loader, named)
    ]
    assert cut[0] == cut[1]


@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_smaller_last_batch_is_accumulated_by_rows_if_the_loss_has_no_weight(
    accumulate: int,
) -> None:
    """A mean of the means over 8 and 2 rows would weigh the 2 rows as much as the 8."""

    def loss_fn(model: Any, batch: Any) -> Any:
        return (model(batch[0]) - batch[0][:, :1]).square().mean()

    made = ftrain.make_steps(lambda: nn.Linear(X.shape[1], 1), loss_fn, optim.sgd(0.1))

    def fit(batch_size: int, k: int) -> Any:
        data = DataLoader(TensorDataset(X[:20]), batch_size)
        trainer = Trainer(made, compile=False, accumulate=k, log_every=1)
        return trainer.fit(made.init_state(0), data, epochs=2)

    accumulated, whole = fit(6, accumulate), fit(6 * accumulate, 1)
    assert accumulated.step == whole.step
    assert accumulated.train.loss == pytest.approx(whole.train.loss, rel=1e-6)
    for name, param in whole.state.params.items():
        torch.testing.assert_close(accumulated.state.params[name], param, rtol=4e-7, atol=4e-7)


def test_joined_batches_weigh_a_full_batch_by_one_beside_a_smaller_one() -> None:
    """A rank without a smaller batch gives its batches no weights, so that each counts one."""
    pairs = [(X[:4], Cursor(0, 0, 4)), (X[:4], Cursor(0, 0, 8)), (X[:1], Cursor(0, 1))]
    ((batch, _),) = joined(iter(pairs), lambda: 3, len)
    assert batch.weights == (1, 1, 0.25)
    ((batch, _),) = joined(iter(pairs[:2]), lambda: 2, len)
    assert batch.weights == ()
