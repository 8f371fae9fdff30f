"""Test modules that hold their own buffers and parameters in places other than attributes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim


class Holds(nn.Module):
    """Buffer that `place` turns into a function of the module."""

    held: Any = None

    def __init__(self, place: Callable[[Holds, torch.Tensor], Callable[..., torch.Tensor]]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("scale", torch.ones(2))
        self.fn = place(self, self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(self.layer(x))


def in_closure(module: Holds, held: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda x: x * held


def in_list(module: Holds, held: torch.Tensor) -> Callable[..., torch.Tensor]:
    kept = [held]
    return lambda x: x * kept[0]


def in_default(module: Holds, held: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda x, scale=held: x * scale


def in_partial(module: Holds, held: torch.Tensor) -> Callable[..., torch.Tensor]:
    return functools.partial(torch.mul, held)


def in_tuple(module: Holds, held: torch.Tensor) -> Callable[..., torch.Tensor]:
    kept = (held,)
    return lambda x: x * kept[0]


def in_object(module: Holds, held: torch.Tensor) -> Callable[..., torch.Tensor]:
    module.kept = SimpleNamespace(pair=(held, 1))
    return lambda x: x * module.kept.pair[0]


def in_class(module: Holds, held: torch.Tensor) -> Callable[..., torch.Tensor]:
    Holds.held = held
    return lambda x: x * Holds.held


FOLLOW = [in_closure, in_list]
REFUSED = [in_default, in_partial, in_tuple, in_object, in_class]
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def loss_fn(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean()


@pytest.mark.parametrize("place", FOLLOW)
def test_buffer_in_a_closure_or_list_of_the_model_has_its_value_in_the_state(place: Any) -> None:
    steps = ftrain.make_steps(lambda: Holds(place), loss_fn, optim.sgd(0.1))
    state = steps.init_state(0)
    larger = state.replace(buffers={"scale": state.buffers["scale"] * 2})
    loss, twice = (steps.eval_step(each, X)["loss"] for each in (state, larger))
    torch.testing.assert_close(twice, loss * 4)


@pytest.mark.parametrize("place", REFUSED)
def test_buffer_in_a_place_where_it_cannot_be_replaced_is_refused(place: Any) -> None:
    with pytest.raises(ValueError, match=r"holds the module's own 'scale' .* Read self.scale in"):
        ftrain.make_steps(lambda: Holds(place), loss_fn, optim.sgd(0.1))


class Captured(nn.Module):
    """Parameter in a lambda that captures the module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))
        self.fn = lambda x: x @ self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(x) * self.weight.sum()


def test_a_lambda_that_captures_the_module_raises_with_a_remedy_that_works() -> None:
    steps = ftrain.make_steps(Captured(), loss_fn, optim.sgd(0.1))
    said = r"captures the parameter 'weight' of the module itself.*make_steps\(lambda: Net"
    with pytest.raises(ValueError, match=said):
        steps.train_step(steps.init_state(0), X)
    steps = ftrain.make_steps(Captured, loss_fn, optim.sgd(0.1))
    steps.train_step(steps.init_state(0), X)
