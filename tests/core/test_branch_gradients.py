"""Gradients taken inside of a branch of `cond`, in rows and traces that run all branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ftrain
from ftrain import random
from ftrain.testing import assert_same_bits

ONE = torch.tensor(0)
XS = torch.tensor([[0.3, 0.5], [-0.3, 0.1], [0.0, 0.2]], dtype=torch.float64)


def cube(x: Tensor) -> Tensor:
    return (x**3).sum()


def by_autograd(x: Tensor) -> Tensor:
    with torch.enable_grad():
        p = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(cube(p), p, create_graph=True)[0]


def by_vjp(x: Tensor) -> Tensor:
    value, pull = torch.func.vjp(cube, x)
    return pull(torch.ones_like(value))[0]


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "grad": torch.func.grad(cube),
    "vjp": by_vjp,
    "jacrev": torch.func.jacrev(cube),
    "value_and_grad": lambda x: ftrain.value_and_grad(cube)(x)[1],
    "autograd": by_autograd,
}


def keyed(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with random.keyed(random.key(0)):
            return fn(x)

    return run


PLACES: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]] = {
    "plain": lambda fn: fn,
    "keyed": keyed,
    "branch": lambda fn: lambda x: ftrain.cond(x.sum() < 9, lambda: fn(x), lambda: x),
}


@pytest.mark.parametrize("inner", PLACES)
@pytest.mark.parametrize("outer", PLACES)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_inside_of_a_branch_has_the_derivative_of_its_formula(
    name: str, outer: str, inner: str
) -> None:
    gradient = GRADIENTS[name]

    def branched(gradient: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        taken = PLACES[inner](lambda x: x - 0.1 * gradient(x))
        whole = PLACES[outer](lambda x: ftrain.cond(x.sum() > 0.1, lambda: taken(x), lambda: x))
        return lambda x: whole(x).square().sum()

    f, by_formula = branched(gradient), branched(lambda x: 3 * x**2)
    expected = torch.stack([ftrain.value_and_grad(by_formula)(x)[1] for x in XS])
    found = torch.vmap(ftrain.value_and_grad(f))(XS)[1]
    assert torch.allclose(found, expected, rtol=1e-12)
    if name != "autograd":  # torch.autograd.grad takes no part in forward mode under torch.func

        def along(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]

        compiled = ftrain.compile(ftrain.value_and_grad(along(f)), backend="eager")
        second = torch.stack([ftrain.value_and_grad(along(by_formula))(x)[1] for x in XS])
        assert torch.allclose(torch.stack([compiled(x)[1] for x in XS]), second, rtol=1e-12)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("outer", ["grad", "vjp", "jacrev", "value_and_grad"])
@pytest.mark.parametrize("inner", ["grad", "vjp", "value_and_grad"])
def test_nested_gradients_inside_of_a_branch_have_the_derivative_of_their_formula(
    inner: str, outer: str, place: str
) -> None:
    def gradient_of(fn: Callable[[Tensor], Tensor], how: str) -> Callable[[Tensor], Tensor]:
        if how == "vjp":
            return lambda x: torch.func.vjp(fn, x)[1](torch.ones_like(fn(x)))[0]
        if how == "value_and_grad":
            return lambda x: ftrain.value_and_grad(fn)(x)[1]
        return torch.func.jacrev(fn) if how == "jacrev" else torch.func.grad(fn)

    def by_rows(gradient: Callable[[Tensor], Tensor]) -> list[Tensor]:
        taken = PLACES[place](lambda x: gradient(x) * x)
        f = ftrain.value_and_grad(
            lambda x: (ftrain.cond(x.sum() > 0.1, lambda: taken(x), lambda: x) * x).sum()
        )
        return [*torch.vmap(f)(XS), *ftrain.compile(torch.vmap(f), backend="eager")(XS)]

    within = gradient_of(cube, inner)
    found = by_rows(gradient_of(lambda x: (within(x) * x).sum(), outer))
    for a, b in zip(found, by_rows(lambda x: 9 * x**2), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


class XSin(torch.autograd.Function):
    """The autograd function x · sin(x)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.sin() + x * x.cos())


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("mapped", [0, 1, 2])
@pytest.mark.parametrize("outer", PLACES)
@pytest.mark.parametrize("inner", PLACES)
def test_autograd_function_under_vmaps_in_a_branch_has_the_derivative_of_its_formula(
    inner: str, outer: str, mapped: int, order: int
) -> None:
    """Its forward runs below the derivatives around the branch, and inside of new vmaps."""

    def branched(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        for _ in range(mapped):
            fn = (lambda f: lambda x: torch.vmap(f)(torch.stack([x, 2 * x])).sum(0))(fn)
        taken = PLACES[inner](fn)
        f = PLACES[outer](lambda x: ftrain.cond(x.sum() > 0.1, lambda: taken(x), lambda: x))
        for _ in range(order):
            f = (lambda g: lambda x: ftrain.value_and_grad(lambda x: (g(x) ** 2).sum())(x)[1])(f)
        return f

    found, expected = (torch.vmap(branched(f))(XS) for f in (XSin.apply, lambda x: x * x.sin()))
    assert torch.allclose(found, expected, rtol=1e-12)


CONSTANT: dict[str, Callable[[Tensor], Tensor]] = {
    "new tensor": torch.ones_like,
    "detached": lambda x: x.detach() * 2,
    "comparison": lambda x: (x > 0).to(x.dtype),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", CONSTANT)
def test_branch_that_does_not_depend_on_its_input_adds_nothing_to_the_gradient(
    name: str, compiled: bool
) -> None:
    def value(x: Tensor) -> Tensor:
        return ftrain.cond(x.sum() > 0, CONSTANT[name], lambda x: x * 3, x).sum() + x.sum()

    f = ftrain.value_and_grad(value)
    f = ftrain.compile(f, backend="eager") if compiled else f
    assert f(torch.ones(2))[1].tolist() == [1.0, 1.0]
    assert f(-torch.ones(2))[1].tolist() == [4.0, 4.0]


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "row": lambda t: t[1],
    "last of unbound rows": lambda t: t.unbind()[-1],
    "part of a row": lambda t: t[0, 1:3],
    "transposed block": lambda t: t[:, 1:3].T,
    "diagonal": lambda t: t.diagonal(1),
    "number": lambda t: t[2, 3],
    "imaginary part": lambda t: torch.view_as_real(torch.complex(t, t * t))[1, :, 1],
    "expanded": lambda t: t[1, 1:2].expand(3),
    "empty": lambda t: t[1, 4:],
}


@pytest.mark.parametrize("operator", ["cond", "switch", "scan", "while_loop"])
@pytest.mark.parametrize("name", VIEWS)
def test_body_may_return_any_view_of_a_tensor_that_it_makes(name: str, operator: str) -> None:
    """The other branch, or the carry, has memory of its own: torch wants equal strides and offsets."""
    view = VIEWS[name]

    def made(x: Tensor) -> Tensor:
        return view(torch.stack([x, x.sin(), x * x]))

    def f(x: Tensor) -> Tensor:
        other = made(x).clone(memory_format=torch.contiguous_format)
        if operator == "scan":
            return ftrain.scan(lambda c, _: (made(x) + 0 * c, made(x)), other, length=2)[1]
        if operator == "while_loop":
            return ftrain.while_loop(
                lambda c: c[1] < 2, lambda c: (made(x), c[1] + 1), (other, ONE)
            )[0]
        if operator == "cond":
            return ftrain.cond(x.sum() > 0, lambda: made(x), lambda: other)
        return ftrain.switch(x.sum().long(), [lambda: other, lambda: made(x), lambda: 2 * other])

    x = torch.tensor([0.3, 0.5, -0.2, 0.7], dtype=torch.float64)
    assert_same_bits(ftrain.compile(f, backend="eager")(x), f(x))
    if operator != "while_loop":
        gradient = ftrain.value_and_grad(lambda x: (f(x) ** 2).sum() + x.sum())
        # A scan adds the gradients of a captured tensor in another order.
        torch.testing.assert_close(ftrain.compile(gradient, backend="eager")(x), gradient(x))


@pytest.mark.parametrize("other", [lambda o: o, torch.ones_like, lambda o: o.cos()])
@pytest.mark.parametrize("taken", [True, False])
def test_second_derivative_of_a_recomputed_branch_that_captures_its_operand_matches_eager(
    taken: bool, other: Callable[[Tensor], Tensor]
) -> None:
    """The recomputed operand is another object than the captured tensor, but the same variable."""

    def region(y: Tensor) -> Tensor:
        return ftrain.cond((y.sum() > 0.1) == taken, lambda o: y.sin(), other, y).sin()

    def second(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        for _ in range(2):
            f = (lambda g: lambda x: ftrain.value_and_grad(lambda x: (g(x) ** 2).sum())(x)[1])(f)
        return f

    saving = ftrain.remat(region)
    x = torch.tensor([0.3, 0.5], dtype=torch.float64)
    expected = second(lambda x: region(x) * x)(x)
    found = ftrain.compile(second(lambda x: saving(x) * x), backend="eager")(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
