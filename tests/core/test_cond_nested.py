"""Derivatives of derivatives through branches whose body takes a gradient of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp

import ftrain
from ftrain.core._choose import _Gated
from ftrain.core._graph_leaves import requires_grad_outside

X = torch.tensor([0.5, -0.3], dtype=torch.float64)
WEIGHT = torch.tensor([1.3, 0.7], dtype=torch.float64)
TANGENT = torch.tensor([0.2, 1.0], dtype=torch.float64)

INNER: dict[str, Callable[[Tensor], Tensor]] = {
    "value_and_grad": lambda x: ftrain.value_and_grad(lambda z: (z**3).sum())(x)[1],
    "torch.func.grad": grad(lambda z: (z**3).sum()),
}
ORDERS: dict[str, Callable[[Any], Any]] = {
    "grad of jvp": lambda f: grad(lambda x: jvp(f, (x,), (TANGENT,))[1]),
    "jvp of grad": lambda f: lambda x: jvp(grad(f), (x,), (TANGENT,))[1],
    "value_and_grad of jvp": lambda f: (
        lambda x: ftrain.value_and_grad(lambda x: jvp(f, (x,), (TANGENT,))[1])(x)[1]
    ),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", ["eager", "compiled", "compiled vmapped"])
def test_second_derivative_through_a_branch_with_a_gradient_inside(
    inner: str, order: str, mode: str
) -> None:
    """A compiled branch in forward mode hid from the inner gradient that its input is tracked: zeros."""

    def body(x: Tensor, weight: Tensor) -> Tensor:
        return INNER[inner](x) * weight

    def f(x: Tensor) -> Tensor:
        return ftrain.cond(x.sum() > -100, body, lambda x, weight: x, x, WEIGHT).sum()

    second = ORDERS[order](f)
    rows = torch.stack([X, 2 * X])
    if mode == "compiled vmapped":
        found = ftrain.compile(torch.vmap(second), backend="eager")(rows)
    else:
        call = second if mode == "eager" else ftrain.compile(second, backend="eager")
        found = torch.stack([call(row) for row in rows])
    # f(x) = sum(3 w x^2), so its second derivative along the tangent t is 6 w t.
    torch.testing.assert_close(found, (6 * WEIGHT * TANGENT).expand(2, 2), rtol=1e-12, atol=0)


def test_function_modes_do_not_hide_that_a_transform_tracks_a_tensor() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        with _Gated(torch.tensor(True)):
            seen.append(requires_grad_outside(x))
        return x.sum()

    grad(lambda x: jvp(f, (x,), (TANGENT,))[1])(X)
    assert seen == [True]
