"""Steps call their ranks as the protocol says: a single rank changes no bit."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import testing
from ftrain.core import random
from ftrain.core._compares_rows import compares_rows
from ftrain.core.accumulate import PartFn, Separate, Stacked, Sums, accumulate_micro_batches
from ftrain.core.ranks import Ranks

BATCH = torch.linspace(-1, 1, 24).reshape(8, 3)


class OneRank(Ranks):
    """A rank that shares its batch with none, and records the calls."""

    def __init__(self, module: nn.Module, parts: int, total: int, cuts_whole: bool) -> None:
        self.parts, self.total, self.cuts_whole = parts, total, cuts_whole
        self.weights: list[float] = []
        self.written: Set[str] = set()
        self.kinds: list[type] = []

    def begin_backward(self, weight: Tensor) -> None:
        self.weights.append(float(weight))

    def summed(
        self,
        of_part: PartFn,
        zeros: Callable[[], Any],
        buffers: Any,
        key: Tensor,
        parts: Stacked | Separate,
        written: Set[str],
    ) -> Sums:
        self.kinds.append(type(parts))
        keys = random.split(key, parts.k)
        sums = accumulate_micro_batches(of_part, zeros(), buffers, keys, parts.unstack())
        self.written = set(written)
        return sums


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    loss: Tensor = model(batch).square().mean()
    return loss


@pytest.mark.parametrize("cuts_whole", [False, True])
@pytest.mark.parametrize(("accumulate", "total"), [(1, 1), (1, 2), (2, 2)])
def test_single_rank_gives_the_gradients_of_one_process(
    accumulate: int, total: int, cuts_whole: bool
) -> None:
    made: list[OneRank] = []

    def build(module: nn.Module, parts: int) -> Ranks:
        assert isinstance(module, nn.Sequential)
        made.append(OneRank(module, parts, total, cuts_whole))
        return made[-1]

    apply = ftrain.bind(model)
    params, buffers = apply.init(random.key(0))
    zero = torch.tensor(0)
    state = ftrain.TrainState(zero, params, buffers, (), (), random.key(1), {})
    alone = ftrain.gradients(apply, loss_fn, accumulate=accumulate)
    shared = alone.over(build)
    expected, found = alone(state, BATCH), shared(state, BATCH)
    if accumulate > 1:
        testing.assert_same_bits(found.grads, expected.grads)
        testing.assert_same_bits(found.buffers, expected.buffers)
    else:  # the key of the only micro-batch is split from the step's, so that the masks differ
        assert {k: g.dtype for k, g in found.grads.items()} == {
            k: g.dtype for k, g in expected.grads.items()
        }
    (rank,) = made
    assert rank.written == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert rank.weights == [1.0] * accumulate
    is_cut = accumulate > 1 or cuts_whole
    assert rank.kinds == [Stacked if is_cut else Separate]
    with pytest.raises(ValueError, match="not reduced over ranks, got steps with ranks"):
        shared.over(build)


def test_gradients_with_grad_reduce_cannot_be_reduced_over_ranks_once_more() -> None:
    reduced = ftrain.gradients(model, loss_fn, grad_reduce=lambda totals, weight: (totals, weight))
    with pytest.raises(ValueError, match="over ranks, got steps with grad_reduce"):
        reduced.over(lambda module, parts: OneRank(module, parts, 1, False))


def test_loss_that_compares_rows_is_refused_if_all_ranks_together_have_several_micro_batches() -> (
    None
):
    @compares_rows
    def compared(model: nn.Module, batch: Tensor) -> Tensor:
        return loss_fn(model, batch)

    gradients = ftrain.gradients(model, compared)
    gradients.over(lambda module, parts: OneRank(module, parts, 1, False))
    with pytest.raises(ValueError, match="loss_fn: expected a loss that is a mean over rows"):
        gradients.over(lambda module, parts: OneRank(module, parts, 2, False))
