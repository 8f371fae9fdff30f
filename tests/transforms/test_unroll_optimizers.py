"""Hypergradients through every optimizer equal finite differences in float64."""

from __future__ import annotations

import pytest
import torch

import ftrain
from ftrain import optim
from ftrain.transforms import unroll
from tests.optim.cases import CASES
from tests.transforms.unrolled import difference, relative, steps_of, validation


@pytest.mark.parametrize("name", CASES)
def test_hypergradient_equals_finite_differences(name: str) -> None:
    """By learning rate, initial parameters, extras and batches.

    The bound holds where no element crosses a branch (a clipped update, a sign) within the difference.
    """
    case, rate = CASES[name], CASES[name].rates.mlp
    optimizer = optim.with_hyperparams(
        lambda learning_rate: case.build(learning_rate), learning_rate=rate
    )
    steps = steps_of(optimizer)
    loss = validation(steps, unroll(steps.train_step, 3), rate, 3)
    zero = torch.zeros(4, dtype=torch.float64)
    _, found = ftrain.value_and_grad(loss)(zero)
    assert torch.isfinite(found).all()
    assert relative(found, difference(loss, zero, 1e-5)) < 1e-6
