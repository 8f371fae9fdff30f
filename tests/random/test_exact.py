"""Test where a sample takes the derivatives of its formula, and where the formula is not computed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from ftrain.core.random._exact import exact

X = torch.tensor([0.5, 2.0])


class Watched:
    """A sample with the value 7 and the derivatives of a square, which counts its formula's calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        def formula() -> Tensor:
            self.calls += 1
            return x * x

        return exact(torch.full_like(x.detach(), 7.0), formula, x)


DERIVATIVES: dict[str, Callable[[Watched], Tensor]] = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(X),
    "jvp": lambda f: torch.func.jvp(f, (X,), (torch.ones(2),))[1],
    "vmap of grad": lambda f: torch.vmap(torch.func.grad(f))(X),
    "grad of vmap": lambda f: torch.func.grad(lambda x: torch.vmap(f)(x).sum())(X),
    "trace": lambda f: make_fx(torch.func.grad(lambda x: f(x).sum()))(X)(X),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivative_of_a_sample_is_that_of_its_formula_in_every_transform(name: str) -> None:
    torch.testing.assert_close(DERIVATIVES[name](Watched()), 2 * X)


def test_derivative_of_a_sample_by_autograd_is_that_of_its_formula_with_and_without_vmap() -> None:
    for mapped in (False, True):
        x, f = X.clone().requires_grad_(), Watched()
        (torch.vmap(f) if mapped else f)(x).sum().backward()
        torch.testing.assert_close(x.grad, 2 * X)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, torch.ones(2))
        torch.testing.assert_close(forward_ad.unpack_dual(Watched()(dual)).tangent, 2 * X)


def test_derivative_formula_of_a_sample_is_computed_only_if_autograd_can_need_it() -> None:
    leaf = X.clone().requires_grad_()
    for x, context, calls in (
        (X, contextlib.nullcontext(), 0),
        (leaf, torch.no_grad(), 0),
        (leaf, contextlib.nullcontext(), 1),
    ):
        sample = Watched()
        with context:
            assert sample(x).tolist() == [7.0, 7.0]
        assert sample.calls == calls
