"""Derivatives of derivatives through branches whose body takes a gradient of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp

import ftrain
from ftrain.core._gated import Gated
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
def test_second_derivative_of_a_cond_branch_that_takes_a_gradient_has_its_known_value(
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


def test_requires_grad_outside_detects_outer_transforms_inside_a_function_mode() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        with Gated(torch.tensor(True)):
            seen.append(requires_grad_outside(x))
        return x.sum()

    grad(lambda x: jvp(f, (x,), (TANGENT,))[1])(X)
    assert seen == [True]


class Scaled(torch.autograd.Function):
    """x · sqrt(y), whose derivative by y is infinite at 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return x * y.sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return grad * y.sqrt(), grad * x / (2 * y.sqrt())


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("by", ["value_and_grad", "torch.func.grad"])
@pytest.mark.parametrize(
    "form", [Scaled.apply, lambda x, y: x * y.sqrt()], ids=["class", "formula"]
)
def test_autograd_function_called_under_keyed_in_a_vmapped_cond_branch_has_the_right_gradient(
    form: Any, by: str, compiled: bool
) -> None:
    """It ended in an internal assertion of torch's."""
    followed = torch.tensor([4.0, 9.0], dtype=torch.float64, requires_grad=True)

    def taken(x: Tensor) -> Tensor:
        with ftrain.random.keyed(ftrain.random.key(0)):
            return form(x, x) + form(x, followed)

    def loss(x: Tensor) -> Tensor:
        return ftrain.cond(x.sum() > 0, lambda: taken(x), lambda: x).sum()

    slope = grad(loss) if by == "torch.func.grad" else lambda x: ftrain.value_and_grad(loss)(x)[1]
    rows = torch.tensor([[4.0, 1.0], [0.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    found = torch.vmap(slope)
    if compiled:
        found = torch.no_grad()(ftrain.compile(found, backend="eager"))
    assert found(rows).tolist() == [[3.0 + 2, 1.5 + 3], [1.0, 1.0], [1.0, 1.0]]


CONSTANT = torch.tensor([0.3, 0.7], dtype=torch.float64)


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 2


def looped(x: Tensor) -> Tensor:
    """Read `x` in a while loop, whose trace is another one than that of the branch."""
    init = (CONSTANT, torch.tensor(0))
    body = lambda c: (c[0] * x.detach().cos(), c[1] + 1)  # noqa: E731
    return ftrain.while_loop(lambda c: c[1] < 2, body, init)[0]


#: Functions that read `x` first, and the same without a derivative.
READERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "no_grad": (without_grad, lambda x: x.detach() * 2),
    "while_loop": (looped, lambda x: CONSTANT * x.detach().cos() ** 2),
    "gradient": (
        lambda x: ftrain.value_and_grad(lambda z: (z**2 * x).sum())(CONSTANT)[1],
        lambda x: 2 * CONSTANT * x,
    ),
    "gradient inside jvp": (
        lambda x: jvp(
            lambda z: ftrain.value_and_grad(lambda y: (y**3 * x).sum())(z)[1], (x,), (CONSTANT,)
        )[1],
        lambda x: 6 * CONSTANT * x**2,
    ),
    "jvp": (
        lambda x: jvp(lambda z: z**2 * x, (CONSTANT,), (CONSTANT,))[1],
        lambda x: 2 * CONSTANT**2 * x,
    ),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("mapped", ["outside", "inside"])
@pytest.mark.parametrize("reader", READERS)
def test_gradient_of_a_vmapped_cond_branch_is_right_wherever_the_branch_first_reads_its_input(
    reader: str, mapped: str, compiled: bool
) -> None:
    """Gradients of a mapped branch that reads a tensor under no_grad first are not zero."""
    read, plain = READERS[reader]

    def loss(x: Tensor) -> Tensor:
        return ftrain.cond(x.sum() > 0, lambda: read(x) * x, lambda: x).sum()

    rows = torch.tensor([[0.75, 0.5], [-0.75, 0.5]], dtype=torch.float64)
    if mapped == "outside":
        found = torch.vmap(lambda x: ftrain.value_and_grad(loss)(x)[1])
    else:
        found = lambda xs: ftrain.value_and_grad(lambda xs: torch.vmap(loss)(xs).sum())(xs)[1]  # noqa: E731
    if compiled:
        found = ftrain.compile(found, backend="eager")
    expected = torch.stack([grad(lambda x: (plain(x) * x).sum())(rows[0]), torch.ones_like(X)])
    torch.testing.assert_close(found(rows), expected, rtol=1e-12, atol=0)


class Sine(torch.autograd.Function):
    """Autograd function of both modes."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("captured", [False, True], ids=["operand", "captured"])
def test_branch_keeps_the_tangent_of_a_tensor_that_an_autograd_function_reads_first(
    captured: bool, compiled: bool
) -> None:
    """A compiled branch took it from the forward of the function, in which forward mode is off."""

    def value(x: Tensor) -> Tensor:
        def taken(*operands: Tensor) -> Tensor:
            x_ = x if captured else operands[0]
            return Sine.apply(x_) * x_

        operands = () if captured else (x,)
        left = (lambda: 2 * x) if captured else (lambda x: 2 * x)
        return ftrain.cond(x.sum() > 0, taken, left, *operands).sum()

    def tangents(x: Tensor) -> tuple[Tensor, Tensor]:
        with forward_ad.dual_level():
            result, slope = ftrain.value_and_grad(value)(forward_ad.make_dual(x, TANGENT))
            return forward_ad.unpack_dual(result).tangent, forward_ad.unpack_dual(slope).tangent

    call = ftrain.compile(tangents, backend="eager") if compiled else tangents
    first = X.sin() + X * X.cos()
    expected = (first @ TANGENT, (2 * X.cos() - X * X.sin()) * TANGENT)
    torch.testing.assert_close(call(X), expected, rtol=1e-12, atol=0)
