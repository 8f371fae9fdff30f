"""Gradients that the backward of an autograd function adds to `.grad`, as reversible layers do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, testing
from ftrain.core.errors import ImpureFunctionError


class Recomputed(torch.autograd.Function):
    """Layer without stored activations, whose gradients are not returned but accumulated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        with torch.no_grad():
            return layer(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.layer(x)
        torch.autograd.backward(out, grad)
        return x.grad, None


class Reversible(nn.Module):
    """Model with a layer that is recomputed, and used a second time in the ordinary way."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.first, self.second, self.twice = nn.Linear(3, 3), nn.Linear(3, 3), twice

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Recomputed.apply(self.first(x), self.second)  # type: ignore[no-untyped-call]
        return out + self.second(x) if self.twice else out


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()  # type: ignore[no-any-return]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_that_a_backward_function_adds_to_grad_attributes_reach_the_step(
    compiled: bool, twice: bool, accumulate: int
) -> None:
    torch.manual_seed(0)
    model, x = Reversible(twice), torch.randn(4, 3)
    by_hand = copy.deepcopy(model)
    mean_square(by_hand, x).backward()
    steps = ftrain.make_steps(model, mean_square, optim.sgd(1.0), accumulate=accumulate)
    step = ftrain.compile(steps.train_step, backend="eager") if compiled else steps.train_step
    state = steps.init_state(0)
    for _ in range(2):  # later calls skip some checks of the first one
        new, _ = step(state, x)
        grads = {name: state.params[name] - new.params[name] for name in state.params}
        for name, parameter in by_hand.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-5, atol=1e-6)


def test_accumulated_gradients_equal_those_of_backward_to_the_bit() -> None:
    torch.manual_seed(0)
    model, x = Reversible(twice=False), torch.randn(4, 3)
    state = ftrain.make_steps(model, mean_square, optim.sgd(1.0)).init_state(0)
    result = ftrain.gradients(model, mean_square)(state, x)
    mean_square(model, x).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    testing.assert_same_bits(result.grads, {name: expected[name] for name in result.grads})


def test_gradient_of_accumulated_gradients_raises() -> None:
    weight, x = torch.ones(3), torch.randn(4, 3)

    class Scaled(nn.Module):
        weight: Tensor

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    def value(w: Tensor, scale: Tensor | None = None) -> Tensor:
        layer = Scaled()
        layer.weight = w if scale is None else scale
        out: Tensor = Recomputed.apply(x * w, layer)  # type: ignore[no-untyped-call]
        return out.square().sum()

    def slope(w: Tensor) -> Tensor:
        return ftrain.value_and_grad(value)(w)[1].sum()  # type: ignore[no-any-return]

    def slope_of_outer(w: Tensor) -> Tensor:
        return ftrain.value_and_grad(lambda a: value(a, w))(w * 2)[1].sum()  # type: ignore[no-any-return]

    assert ftrain.value_and_grad(value)(weight)[1].any()
    for nested in (slope, slope_of_outer):
        with pytest.raises(ImpureFunctionError, match="can be differentiated again"):
            ftrain.value_and_grad(nested)(weight)
    captured = torch.ones((), requires_grad=True)
    with pytest.raises(ImpureFunctionError, match="can be differentiated again"):
        ftrain.value_and_grad(lambda w: value(w) * captured)(weight)
    with torch.no_grad():
        assert ftrain.value_and_grad(lambda w: value(w) * captured)(weight)[1].any()
        with pytest.raises(ImpureFunctionError, match="can be differentiated again"):
            ftrain.value_and_grad(value, differentiable=True)(weight)


def test_function_that_calls_backward_before_it_returns_raises_in_every_call() -> None:
    calls = []

    def value(w: Tensor) -> Tensor:
        calls.append(w)
        if len(calls) > 1:
            w.square().sum().backward()
        return (3 * w).sum()

    gradient = ftrain.value_and_grad(value)
    assert gradient(torch.ones(2))[1].tolist() == [3.0, 3.0]
    for _ in range(2):
        with pytest.raises(ImpureFunctionError, match=r"called backward\(\)"):
            gradient(torch.ones(2))


def test_loss_that_leaves_gradients_in_its_parameters_raises() -> None:
    def adversarial(model: nn.Module, x: Tensor) -> Tensor:
        noise = torch.zeros_like(x, requires_grad=True)
        mean_square(model, x + noise).backward()
        assert noise.grad is not None
        return mean_square(model, x + 0.1 * noise.grad.sign())

    def cleared(model: nn.Module, x: Tensor) -> Tensor:
        noise = torch.zeros_like(x, requires_grad=True)
        mean_square(model, x + noise).backward()
        model.zero_grad()
        assert noise.grad is not None
        return mean_square(model, x + 0.1 * noise.grad.sign())

    torch.manual_seed(0)
    model, x = nn.Linear(3, 3), torch.randn(4, 3)
    state = ftrain.make_steps(model, cleared, optim.sgd(1.0)).init_state(0)
    with pytest.raises(ImpureFunctionError, match=r"model\.zero_grad\(\)"):
        ftrain.gradients(model, adversarial)(state, x)
    grads = ftrain.gradients(model, cleared)(state, x).grads
    cleared(model, x).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    testing.assert_same_bits(grads, {name: expected[name] for name in grads})
