"""Activation checkpointing inside transforms equals the plain function, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ftrain
from ftrain.testing import assert_same_bits
from tests.core.differences import is_close

X = torch.tensor([[0.75, 0.5], [0.25, -0.5]], dtype=torch.float64)


def plain(x: Tensor) -> Tensor:
    return (x.sin() * x).tanh()


def region(x: Tensor) -> Tensor:
    result: Tensor = checkpoint(plain, x, use_reentrant=False)
    return result


def gradient(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: ftrain.value_and_grad(lambda x: (f(x) ** 2).sum())(x)[1]


COMPOSED: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]] = {
    "gradient": gradient,
    "gradient of gradient": lambda f: gradient(gradient(f)),
    "gradient of vmap": lambda f: gradient(torch.vmap(f)),
    "vmap of gradient": lambda f: torch.vmap(gradient(f)),
    "gradient of func.grad": lambda f: gradient(torch.func.grad(lambda x: f(x).sum())),
    "jvp of gradient": lambda f: lambda x: torch.func.jvp(gradient(f), (x,), (x,))[1],
}


@pytest.mark.parametrize("name", COMPOSED)
def test_compiled_function_with_activation_checkpointing_matches_the_plain_one(name: str) -> None:
    found = ftrain.compile(COMPOSED[name](region), backend="eager")(X)
    assert is_close(found, COMPOSED[name](plain)(X))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2).double()

    def forward(self, x: Tensor, region: Callable[[Tensor], Tensor]) -> Tensor:
        return region(self.inner(x))


@pytest.mark.parametrize("name", COMPOSED)
def test_activation_checkpointing_in_a_bound_module_matches_the_plain_function(name: str) -> None:
    apply = ftrain.bind(Checkpointed)
    params, buffers = apply.init(ftrain.random.key(0))

    def called(region: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: apply(params, buffers, ftrain.random.key(1), x, region)[0]

    assert is_close(COMPOSED[name](called(region))(X), COMPOSED[name](called(plain))(X))


@pytest.mark.parametrize(
    "name", ["gradient of vmap", "vmap of gradient", "jvp of gradient", "gradient of func.grad"]
)
def test_eager_function_with_activation_checkpointing_matches_the_plain_one(name: str) -> None:
    assert is_close(COMPOSED[name](region)(X), COMPOSED[name](plain)(X))


def _slope(value: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: ftrain.value_and_grad(lambda a: value(a).sum(), differentiable=True)(x)[1]


REGIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gradient of a branch": _slope(
        lambda a: ftrain.cond(a.sum() > 0, lambda: a.sin(), lambda: a.tanh())
    ),
    "gradient of a branch with operands": _slope(
        lambda a: ftrain.cond(a.sum() > 0, torch.sin, torch.tanh, a)
    ),
    "gradient of a scan": _slope(
        lambda a: ftrain.scan(lambda s, _: (s.sin() * a, None), a, length=3)[0]
    ),
    "autograd.grad of a branch": lambda x: torch.autograd.grad(
        ftrain.cond(x.sum() > 0, lambda: x.sin(), lambda: x.tanh()).sum(), x, create_graph=True
    )[0],
}


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("again", ["checkpoint", "remat"])
def test_activation_checkpointing_of_a_function_that_takes_a_gradient_keeps_its_derivative(
    region: Callable[[Tensor], Tensor], again: str
) -> None:
    def value(x: Tensor) -> Tensor:
        if again == "remat":
            return ftrain.remat(region)(x).sum()
        out: Tensor = checkpoint(region, x, use_reentrant=False)
        return out.sum()

    x = torch.tensor([0.3, -0.6], dtype=torch.float64)
    slope, plain = map(ftrain.value_and_grad, (value, lambda x: region(x).sum()))
    assert_same_bits(slope(x), plain(x))
    compiled = ftrain.compile(slope, backend="eager")(x)
    assert_same_bits(compiled, ftrain.compile(plain, backend="eager")(x))
    assert is_close(compiled[1], slope(x)[1])  # a scan adds up second derivatives in another order
