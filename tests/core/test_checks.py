"""Test the checks of a step's arguments, and the modes of torch that a step turns off."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core._checks import check_batch, checked, isolated
from ftrain.core._kept_graph import keeping_graph

CPU, META = torch.device("cpu"), torch.device("meta")


def modes() -> tuple[bool, bool, bool]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


@pytest.mark.parametrize(
    ("grad", "inference", "autocast"), list(itertools.product([False, True], repeat=3))
)
def test_isolated_turns_off_grad_mode_inference_mode_and_autocast_and_restores_them(
    grad: bool, inference: bool, autocast: bool
) -> None:
    with (
        torch.inference_mode(inference),
        torch.set_grad_enabled(grad),
        torch.autocast("cpu", enabled=autocast),
    ):
        before = modes()
        with isolated("cpu"):
            assert modes() == (False, False, False)
        assert modes() == before
        with keeping_graph(), isolated("cpu"):
            # Nothing can be differentiated in inference mode.
            assert modes() == (grad and not inference, False, False)
        assert modes() == before


class Inventive:
    """Object that has an attribute of any name, but cannot be converted to an array."""

    def __getattr__(self, name: str) -> int:
        return 1


def inferred() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(2)


GRADED = torch.ones(2, requires_grad=True)
GRADIENT = r"got a gradient with respect to batch\['b'\]\[1\]"


@pytest.mark.parametrize(
    ("value", "device", "message"),
    [
        (torch.ones(2), CPU, None),
        (torch.tensor(1.0), META, None),
        (torch.ones(2, device="meta"), META, None),
        (torch.ones(2), META, r"batch\['b'\]\[1\]: expected a tensor on meta, .* got one on cpu"),
        (torch.ones(1), META, r"batch\['b'\]\[1\]: expected a tensor on meta, .* got one on cpu"),
        (torch.ones((), device="meta"), CPU, r"expected a tensor on cpu, .* got one on meta"),
        (inferred(), CPU, r"batch\['b'\]\[1\] was made under torch.inference_mode"),
        (np.ones(2), CPU, r"batch\['b'\]\[1\]: expected a tensor, got an ndarray"),
        (np.float32(1), CPU, r"batch\['b'\]\[1\]: expected a tensor, got a float32"),
        (GRADED, CPU, GRADIENT),
        (1.5, CPU, None),
        ("text", CPU, None),
        (Inventive(), CPU, None),
    ],
)
def test_check_batch_names_the_first_entry_that_a_step_cannot_use(
    value: Any, device: torch.device, message: str | None
) -> None:
    batch = {"a": torch.tensor(1.0), "b": [2, value]}
    raised = (
        contextlib.nullcontext()
        if message is None
        else pytest.raises((TypeError, ValueError), match=message)
    )
    with raised:
        check_batch(batch, device)
    if message is GRADIENT:
        with torch.no_grad():
            check_batch(batch, device)
        with keeping_graph():
            check_batch(batch, device)


def made() -> tuple[Any, Any]:
    steps = ftrain.make_steps(
        lambda: nn.Linear(2, 1), lambda m, x: m(x).square().mean(), optim.sgd(0.1)
    )
    return steps.train_step, steps.init_state(0)


def test_step_refuses_a_gradient_around_it_and_names_the_entry_of_the_state() -> None:
    step, state = made()
    x, weight = torch.ones(3, 2), state.params["weight"]

    def loss_after(weight: torch.Tensor) -> torch.Tensor:
        new, _ = step(state.replace(params={**state.params, "weight": weight}), x)
        return new.params["weight"].sum()

    with pytest.raises(ValueError, match=r"gradient with respect to state\.params\['weight'\]"):
        loss_after(weight.clone().requires_grad_())
    with pytest.raises(ValueError, match="a gradient taken by a transform of torch.func"):
        torch.func.grad(loss_after)(weight)
    with torch.no_grad():
        assert not loss_after(weight.clone().requires_grad_()).requires_grad


def test_state_that_is_checked_once_is_not_checked_again_until_the_context_ends() -> None:
    _, state = made()
    graded = ftrain.tree.map(lambda x: x.clone().requires_grad_(x.is_floating_point()), state)
    x = torch.ones(3, 2)
    step, _ = made()
    with torch.no_grad():
        inner = checked(graded)
    with checked(state):
        with inner:
            step.gradients(graded, x)
        with pytest.raises(ValueError, match=r"gradient with respect to state\.params"):
            step.gradients(graded, x)
