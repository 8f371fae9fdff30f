"""Regions of `remat` in forward mode have the derivatives of the function without regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import ftrain
from ftrain import testing
from tests.core.test_remat import X, nested, plain


def with_tangents(
    f: Callable[[Tensor], Tensor], loss: Callable[..., Any], x: Tensor
) -> list[Tensor]:
    """Return value and gradient of a loss, and their derivatives along ones."""
    with forward_ad.dual_level():
        results = loss(f, forward_ad.make_dual(x, torch.ones_like(x)))
        parts = [forward_ad.unpack_dual(each) for each in results]
        return [part for each in parts for part in each]


def by_autograd(f: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    value = (f(x) ** 2).sum()
    return [value.detach(), *torch.autograd.grad(value, x)]


def by_ftrain(f: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    return ftrain.value_and_grad(lambda x: (f(x) ** 2).sum())(x)


def by_torch_checkpoint(f: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    def region(x: Tensor) -> Tensor:
        return f(x) if f is plain else checkpoint(plain, x, use_reentrant=False)

    return by_ftrain(region, x)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("loss", [by_autograd, by_ftrain, by_torch_checkpoint])
@pytest.mark.parametrize("region", [ftrain.remat(plain), nested])
def test_tangents_of_gradients_through_remat_regions_equal_those_without_remat(
    region: Callable[[Tensor], Tensor], loss: Callable[..., Any], compiled: bool
) -> None:
    found: Any = ftrain.compile(with_tangents, backend="eager") if compiled else with_tangents
    testing.assert_same_bits(found(region, loss, X), with_tangents(plain, loss, X))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("region", [ftrain.remat(plain), nested])
def test_gradients_of_tangents_through_remat_regions_equal_those_without_remat(
    region: Callable[[Tensor], Tensor], compiled: bool
) -> None:
    def slope(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            value = f(forward_ad.make_dual(x, torch.ones_like(x)))
            return forward_ad.unpack_dual(value).tangent.sum()

    def gradients(f: Callable[[Tensor], Tensor], x: Tensor) -> list[Any]:
        leaf = x.detach().requires_grad_()
        return [
            ftrain.value_and_grad(lambda x: slope(f, x))(x),
            torch.autograd.grad(slope(f, leaf), leaf),
        ]

    found: Any = ftrain.compile(gradients, backend="eager") if compiled else gradients
    testing.assert_same_bits(found(region, X), gradients(plain, X))


@pytest.mark.parametrize("region", [ftrain.remat(plain), nested])
def test_remat_regions_are_recomputed_inside_transforms_that_start_after_their_forward_pass(
    region: Callable[[Tensor], Tensor],
) -> None:
    def pulled(f: Callable[[Tensor], Tensor]) -> list[Any]:
        x = X.clone().requires_grad_()
        value = f(x)
        with forward_ad.dual_level():
            g = forward_ad.make_dual(torch.ones_like(X), X)
            (grad,) = torch.autograd.grad(value, x, g, retain_graph=True)
            found = list(forward_ad.unpack_dual(grad))
        rows = torch.stack([X, X + 1])
        return [*found, torch.autograd.grad(value, x, rows, is_grads_batched=True)]

    testing.assert_same_bits(pulled(region), pulled(plain))
