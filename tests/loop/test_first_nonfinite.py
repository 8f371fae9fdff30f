"""Test the search for the first operator of a step that gives a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim
from ftrain.loop._first_nonfinite import first_nonfinite


def logarithm(x: torch.Tensor) -> torch.Tensor:
    return x.log()  # the first NaN


def in_scan(x: torch.Tensor) -> torch.Tensor:
    return ftrain.scan(lambda carry, _: (logarithm(carry) - 1, None), x, length=2)[0]


def in_cond(x: torch.Tensor) -> torch.Tensor:
    return ftrain.cond(x.sum() > -100, logarithm, torch.neg, x)


def in_while_loop(x: torch.Tensor) -> torch.Tensor:
    count = torch.zeros((), dtype=torch.int64)
    return ftrain.while_loop(
        lambda carry: carry[1] < 2,
        lambda carry: (logarithm(carry[0]) - 1, carry[1] + 1),
        (x.detach(), count),
    )[0]


def in_torch_cond(x: torch.Tensor) -> torch.Tensor:
    return torch.cond(x.sum() > -100, logarithm, torch.neg, (x,))


@pytest.mark.parametrize("form", [logarithm, in_scan, in_cond, in_while_loop, in_torch_cond])
def test_first_nonfinite_operator_is_found_in_loops_and_branches(
    form: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """The dispatch mode of the search must declare that it supports loops and branches."""

    def loss_fn(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return form(model(batch)).sum()

    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, -1.0)
    steps = ftrain.make_steps(model, loss_fn, optim.sgd(0.1))
    found = first_nonfinite(steps.train_step, steps.init_state(0), torch.ones(2, 1))
    if form is in_torch_cond:  # torch hides the operators of its branches
        assert "gives 2 NaN of 2 values" in found
    else:
        assert found.startswith("aten.log.default gives 2 NaN of 2 values")
        assert "the first NaN" in found


def test_first_nonfinite_reports_a_step_that_raises_when_it_is_computed_again() -> None:
    def step(state: torch.Tensor, batch: torch.Tensor) -> None:
        raise ValueError("no such file")

    found = first_nonfinite(step, torch.ones(2), torch.ones(2))
    assert found == "this step raised ValueError when it was computed again: no such file"
