"""A step inside a differentiated function is refused, never silently detached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim

X = torch.tensor([[0.5, -0.25]], dtype=torch.float64)


def loss_fn(model: Any, batch: Tensor) -> Tensor:
    return (model(batch).tanh() ** 2).sum()


STEPS = ftrain.make_steps(
    lambda: nn.Linear(2, 2).double(),
    loss_fn,
    optim.with_hyperparams(optim.sgd, learning_rate=0.5),
)
STATE = STEPS.init_state(0)


def by_batch(x: Tensor) -> tuple[Any, Any]:
    return STATE, x


def by_params(x: Tensor) -> tuple[Any, Any]:
    return STATE.replace(params={**STATE.params, "bias": x[0]}), X


def by_rate(x: Tensor) -> tuple[Any, Any]:
    opt_state = optim.set_hyperparams(STATE.opt_state, learning_rate=x[0, 0].float())
    return STATE.replace(opt_state=opt_state), X


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("step", ["train", "eval"])
@pytest.mark.parametrize(
    ("given", "named"),
    [(by_batch, "batch"), (by_params, "state.params['bias']"), (by_rate, "state.opt_state")],
)
def test_step_refuses_inputs_that_require_a_gradient(
    given: Any, named: str, step: str, compiled: bool
) -> None:
    """Refuse under plain autograd and torch.func, even if another path gives a gradient."""

    def f(x: Tensor) -> Tensor:
        arguments = given(x)
        if step == "eval":
            return STEPS.eval_step(*arguments)["loss"] + x.sum()
        return STEPS.train_step(*arguments)[0].params["bias"].sum() + x.sum()

    by_func = torch.func.grad(f)
    by_autograd = lambda x: ftrain.value_and_grad(f)(x)[1]  # noqa: E731
    for gradient in (by_func, by_autograd):
        run = ftrain.compile(gradient, backend="eager") if compiled else gradient
        with pytest.raises(
            ValueError, match=r"a step returns tensors without an autograd graph"
        ) as caught:
            run(X)
        assert gradient is by_func or f"got a gradient with respect to {named}" in str(caught.value)
    with torch.no_grad():
        f(X.clone().requires_grad_() * 1)


@pytest.mark.parametrize("mode", ["eager", "vmap"])
def test_custom_function_with_a_generated_vmap_rule_inside_value_and_grad_matches_the_formula(
    mode: str,
) -> None:
    class Sine(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.sin()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * ctx.saved_tensors[0].cos()

    def gradient(x: Tensor) -> Tensor:
        grad: Tensor = ftrain.value_and_grad(lambda x: torch.vmap(Sine.apply)(x).sum())(x)[1]
        return grad

    found = torch.vmap(gradient)(X[None])[0] if mode == "vmap" else gradient(X)
    torch.testing.assert_close(found, X.cos())
