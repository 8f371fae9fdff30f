"""Gradients with respect to the direction of a forward derivative, at a point that is constant.

Only the tangents depend on the direction, so a function that looks at values alone would cut the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import ftrain
from ftrain import optim
from tests.core.differences import is_close

POINT = torch.tensor([0.4, 0.9], dtype=torch.float64)
V = torch.tensor([0.75, 0.5], dtype=torch.float64)
WEIGHT = torch.tensor([1.0, -2.0], dtype=torch.float64)
CLIP = optim.clip_by_global_norm(0.5)


def quartic(p: Tensor) -> Tensor:
    return (p**4).sum() + p[0] * p[1] ** 2


def inner_gradient(p: Tensor) -> Tensor:
    grad: Tensor = ftrain.value_and_grad(quartic)(p)[1]
    return grad


def clipped(p: Tensor) -> Tensor:
    updates: Any = CLIP.update({"a": p**2}, CLIP.init({"a": p}), {"a": p})[0]
    found: Tensor = updates["a"]
    return found


#: Each with the same function in plain torch.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "value_and_grad": (inner_gradient, torch.func.grad(quartic)),
    "value": (
        lambda p: ftrain.value_and_grad(quartic)(p)[0] * p,
        lambda p: quartic(p) * p,
    ),
    "auxiliary": (
        lambda p: ftrain.value_and_grad(lambda p: (p.sum(), p**3), has_aux=True)(p)[0][1],
        lambda p: p**3,
    ),
    "global_norm": (lambda p: optim.global_norm([p**2]) * p, lambda p: (p**2).norm() * p),
    "clip": (clipped, lambda p: 0.5 * p**2 / ((p**2).norm() + 1e-6)),
    "scan": (lambda p: ftrain.scan(lambda c, _: (c * p, None), p, length=2)[0], lambda p: p**3),
    "cond": (
        lambda p: ftrain.cond(p.sum() > 0, inner_gradient, lambda q: q, p),
        torch.func.grad(quartic),
    ),
    "uniform": (
        lambda p: ftrain.random.uniform(ftrain.random.key(1), (2,), p.dtype, p**2, p**2 + 1),
        lambda p: p**2,
    ),
}


def by_jvp(f: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    return torch.func.jvp(f, (POINT,), (v,))[1]


def by_dual(f: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(POINT, v))).tangent


def by_autograd(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(v: Tensor) -> Tensor:
        v = v.clone().requires_grad_()
        return torch.autograd.grad(f(v), v)[0]

    return run


def by_value_and_grad(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda v: ftrain.value_and_grad(f)(v)[1]


OUTER: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]] = {
    "torch.func.grad": torch.func.grad,
    "value_and_grad": by_value_and_grad,
    "autograd": by_autograd,
    "compiled": lambda f: ftrain.compile(by_value_and_grad(f), backend="eager"),
    "vmap": lambda f: lambda v: torch.vmap(by_value_and_grad(f))(torch.stack([v, v]))[1],
}


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("forward", [by_jvp, by_dual], ids=["jvp", "dual"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_with_respect_to_the_tangent_of_a_forward_derivative_matches_plain_torch(
    name: str, forward: Any, outer: str
) -> None:
    f, plain = FUNCTIONS[name]

    def loss(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda v: (forward(f, v) ** 2 * WEIGHT).sum()

    expected = torch.func.grad(lambda v: (by_jvp(plain, v) ** 2 * WEIGHT).sum())(V)
    assert expected.abs().min() > 1e-3
    assert is_close(OUTER[outer](loss(f))(V), expected)


@pytest.mark.parametrize("forward", [by_jvp, by_dual], ids=["jvp", "dual"])
@pytest.mark.parametrize("outer", ["torch.func.grad", "value_and_grad", "compiled"])
def test_while_loop_refuses_a_reverse_mode_gradient_with_respect_to_a_tangent(
    outer: str, forward: Any
) -> None:
    def repeated(p: Tensor) -> Tensor:
        init = (p, torch.tensor(0))
        return ftrain.while_loop(lambda c: c[1] < 2, lambda c: (c[0] ** 2, c[1] + 1), init)[0]

    with pytest.raises(
        ValueError, match="while_loop: init.* requires a gradient|forward_ad inside"
    ):
        OUTER[outer](lambda v: forward(repeated, v).sum())(V)


@pytest.mark.parametrize("is_compiled_before", [False, True])
def test_compiled_function_refuses_an_argument_with_a_tangent(is_compiled_before: bool) -> None:
    compiled = ftrain.compile(lambda p: p**2, backend="eager")
    if is_compiled_before:
        compiled(V)
    with pytest.raises(RuntimeError, match=r"`p` of .* has a tangent.*compile\(jvp\(f\)\)"):
        by_dual(compiled, V)
    with forward_ad.dual_level():
        assert is_close(compiled(V), V**2)
    assert compiled.n_compiles == 1


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("grad_mode", [False, True])
def test_value_and_aux_of_a_gradient_in_a_dual_level_keep_their_tangents(
    grad_mode: bool, compiled: bool
) -> None:
    """They were detached, which drops tangents as well: their derivatives were zero."""

    def loss(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return (x**3).sum(), [x.sin(), torch.arange(2)]

    def tangents(x: Tensor, t: Tensor) -> list[Tensor]:
        with forward_ad.dual_level(), torch.set_grad_enabled(grad_mode):
            (value, aux), grad = ftrain.value_and_grad(loss, has_aux=True)(
                forward_ad.make_dual(x, t)
            )
            assert not value.requires_grad
            assert not aux[0].requires_grad
            return [forward_ad.unpack_dual(each).tangent for each in (value, aux[0], grad)]

    x, t = torch.tensor([0.5, -0.3]), torch.tensor([0.2, 1.0])
    found = (ftrain.compile(tangents, backend="eager") if compiled else tangents)(x, t)
    torch.testing.assert_close(found, [(3 * x**2) @ t, x.cos() * t, 6 * x * t])


@torch.library.custom_op("ftrain_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


@torch.library.custom_op("ftrain_tests::signs", mutates_args=())
def signs(x: Tensor) -> Tensor:
    return x.abs() > 0


doubled.register_fake(lambda x: torch.empty_like(x))
signs.register_fake(lambda x: torch.empty_like(x, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_compiled_forward_derivative_refuses_a_custom_operator_that_loses_tangents(
    dtype: torch.dtype,
) -> None:
    def slope(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        tangent: Tensor = torch.func.jvp(fn, (x,), (torch.ones_like(x),))[1]
        return tangent

    x = POINT.to(dtype)
    found = ftrain.compile(lambda x: slope(lambda x: x * signs(x), x), backend="eager")(x)
    torch.testing.assert_close(found, torch.ones_like(x))  # a result without a derivative
    lost = ftrain.compile(lambda x: slope(doubled, x), backend="eager")
    with pytest.raises(
        NotImplementedError, match="ftrain_tests::doubled has no derivative in forw"
    ):
        lost(x)


@torch.library.custom_op("ftrain_tests::tripled", mutates_args=())
def tripled(x: Tensor) -> Tensor:
    return x * 3


tripled.register_fake(lambda x: torch.empty_like(x))
tripled.register_autograd(lambda ctx, grad: grad * 3)


def looped(body: Callable[[], Tensor], start: Tensor) -> Tensor:
    once = torch.tensor(0)
    return ftrain.while_loop(lambda c: c[1] < 1, lambda c: (body(), c[1] + 1), (start, once))[0]


@pytest.mark.parametrize(
    "call",
    [
        lambda body, y: body(),
        lambda body, y: ftrain.cond(y.sum() > 0, body, lambda: y),
        lambda body, y: ftrain.scan(lambda c, _: (body(), None), y, length=1)[0],
        looped,
    ],
    ids=["plain", "cond", "scan", "while_loop"],
)
def test_custom_operator_of_a_constant_in_a_loop_has_no_part_in_a_forward_derivative(
    call: Callable[[Callable[[], Tensor], Tensor], Tensor],
) -> None:
    def slope(captured: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def along(x: Tensor) -> Tensor:
            f = lambda y: call(lambda: tripled(captured(x, y)), y) * y  # noqa: E731
            return torch.func.jvp(f, (x,), (V,))[1]

        return ftrain.compile(along, backend="eager")

    torch.testing.assert_close(slope(lambda x, y: x)(POINT), 3 * POINT * V)
    with pytest.raises(NotImplementedError, match="tripled has no derivative in forward mode"):
        slope(lambda x, y: y)(POINT)
