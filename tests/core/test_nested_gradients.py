"""Gradients of gradients: outer differentiation goes through `value_and_grad`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ftrain
from ftrain import optim
from ftrain.core import tree
from ftrain.core.errors import ImpureFunctionError
from tests.core.differences import (
    MODES,
    RATE,
    W,
    assert_derivative,
    gradient,
    is_close,
    quartic,
    run,
)


def inner_step(p: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    return quartic(p - rate * gradient(quartic)(p))


@pytest.mark.parametrize("by", ["func", "vjp", "jvp", "autograd", "value_and_grad", "hessian"])
def test_every_outer_transform_differentiates_through_value_and_grad(by: str) -> None:
    f = lambda p: inner_step(p, RATE)  # noqa: E731
    if by == "func":
        derivative = torch.func.grad(f)(W)
    elif by == "vjp":
        (derivative,) = torch.func.vjp(f, W)[1](torch.ones((), dtype=torch.float64))
    elif by == "jvp":
        basis = torch.eye(2, dtype=torch.float64)
        derivative = torch.stack([torch.func.jvp(f, (W,), (e,))[1] for e in basis])
    elif by == "autograd":
        leaf = W.clone().requires_grad_()
        (derivative,) = torch.autograd.grad(f(leaf), leaf)
    elif by == "value_and_grad":
        derivative = gradient(f)(W)
    else:
        for i, row in enumerate(torch.func.hessian(f)(W)):
            assert_derivative(lambda p, i=i: gradient(f)(p)[i], W, row)
        return
    assert_derivative(f, W, derivative)


def test_autograd_differentiates_through_vmap_of_value_and_grad() -> None:
    leaf = torch.stack([W, W * 2]).requires_grad_()
    (derivative,) = torch.autograd.grad(torch.vmap(gradient(quartic))(leaf).sum(), leaf)
    assert is_close(derivative, 12 * leaf.detach() ** 2)
    assert not torch.vmap(gradient(quartic))(leaf.detach()).requires_grad


def test_forward_mode_differentiates_through_value_and_grad() -> None:
    import torch.autograd.forward_ad as forward

    with forward.dual_level():
        dual = forward.make_dual(W, torch.ones_like(W))
        tangent = forward.unpack_dual(gradient(quartic)(dual)).tangent
        with torch.no_grad():
            again = forward.unpack_dual(gradient(quartic)(dual.requires_grad_())).tangent
    assert is_close((tangent, again), (12 * W**2, 12 * W**2))


def test_outer_gradients_reach_tensors_captured_by_value_and_grad() -> None:
    """Captured tensors: a leaf, a result of a deleted leaf, and a leaf used by aux outputs only."""
    leaf = RATE.clone().requires_grad_()
    computed = RATE.clone().requires_grad_() * 2

    def f(p: torch.Tensor, captured: torch.Tensor) -> Any:
        return ftrain.value_and_grad(lambda p: (captured * p**3).sum())(p)[1].sum()

    for captured in (leaf, computed):
        (derivative,) = torch.autograd.grad(f(W, captured), captured)
        assert is_close(derivative, (3 * W**2).sum())
    (_, aux), _ = ftrain.value_and_grad(lambda p: (quartic(p), leaf * p), has_aux=True)(W)
    (derivative,) = torch.autograd.grad(aux.sum(), leaf)
    assert is_close(derivative, W.sum())


def test_gradient_of_an_argument_excludes_captured_uses_of_the_same_tensor() -> None:
    leaf = W.clone().requires_grad_()
    expected = leaf.detach()
    for x in (leaf, leaf * 1.0, W):
        grad = ftrain.value_and_grad(lambda q, x=x: (q * x).sum())(x)[1]
        assert is_close(grad.detach(), expected)
    pair = ftrain.value_and_grad(lambda q: (q[0] * 2 + q[1] * 3).sum())((leaf, leaf))[1]
    assert is_close(pair, (torch.full_like(W, 2), torch.full_like(W, 3)))


def test_value_and_grad_returns_tensors_without_a_graph_unless_differentiated_again() -> None:
    leaf = W.clone().requires_grad_()

    def penalty(p: torch.Tensor) -> Any:
        x = W.clone().requires_grad_()
        (grad,) = torch.autograd.grad((x**3 * p).sum(), x, create_graph=True)
        return (grad**2).sum(), grad

    for kept in (
        ftrain.value_and_grad(quartic)(W),
        ftrain.value_and_grad(penalty, has_aux=True)(W),
        ftrain.value_and_grad(lambda p: quartic(p) + leaf.detach().sum())(W),
    ):
        assert not any(t.requires_grad for t in tree.leaves(kept))
    with torch.no_grad():
        assert not ftrain.value_and_grad(quartic)(leaf)[1].requires_grad
        assert ftrain.value_and_grad(quartic, differentiable=True)(leaf)[1].requires_grad


def test_inference_mode_does_not_change_value_and_grad() -> None:
    with torch.inference_mode():
        made_inside = W * 1
        for x in (W, made_inside):
            assert is_close(gradient(quartic)(x), 4 * W**3)
    assert is_close(gradient(quartic)(made_inside), 4 * W**3)


def test_value_and_grad_refuses_a_function_that_writes_to_its_argument() -> None:
    leaf = (W * 1).requires_grad_() * 1

    def f(p: torch.Tensor) -> torch.Tensor:
        p.mul_(2)
        return quartic(p)

    for each in (leaf, W):
        with pytest.raises(ImpureFunctionError, match="writes into its argument"):
            ftrain.value_and_grad(f)(each)


def test_value_and_grad_refuses_a_value_independent_of_its_argument() -> None:
    leaf = W.clone().requires_grad_()
    with pytest.raises(ValueError, match="does not depend on its parameters"):
        ftrain.value_and_grad(lambda p: (leaf * p.detach()).sum())(W)


@MODES
def test_gradient_reaches_a_hyperparameter_set_by_set_hyperparams(mode: str) -> None:
    optimizer = optim.with_hyperparams(optim.sgd, learning_rate=0.5)
    start = {"w": torch.tensor(2.0, dtype=torch.float64)}

    def f(rate: torch.Tensor) -> torch.Tensor:
        opt_state = optim.set_hyperparams(optimizer.init(start), learning_rate=rate)
        params = start
        for _ in range(2):
            grads = gradient(lambda p: p["w"] ** 2)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optim.apply_updates(params, updates)
        return params["w"] ** 2

    rate = torch.tensor(0.1, dtype=torch.float64)
    assert_derivative(f, rate, run(gradient(f), mode)(rate))
