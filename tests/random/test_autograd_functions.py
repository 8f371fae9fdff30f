"""Draws in the static methods of autograd functions under transforms: those of the key, or refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

import ftrain
from ftrain import random
from ftrain.core.errors import UnkeyedRandomError
from ftrain.core.random.keyed import keyed, next_key
from ftrain.testing import assert_same_bits

KEY = random.key(3)
X = torch.tensor([[0.75, 0.5, 0.25], [0.25, -0.5, 1.5]])


class Plus(torch.autograd.Function):
    """Sum of a sine and numbers without a derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, noise: Tensor) -> Tensor:
        return x.sin() + noise

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return g * x.cos(), None

    @staticmethod
    def jvp(ctx: Any, t: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return t * x.cos()


class Noisy(Plus):
    """Sum of a sine and numbers that the forward draws."""

    @staticmethod
    def forward(x: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        return x.sin() + draw(x)


def scanned(x: Tensor) -> Tensor:
    return ftrain.scan(lambda c, _: (c + torch.rand(3), c), torch.zeros(3), length=2)[0]


def recomputed(x: Tensor) -> Tensor:
    return ftrain.remat(lambda x: F.dropout(x, 0.5) + torch.rand_like(x))(torch.ones_like(x))


def nested(x: Tensor) -> Tensor:
    return Noisy.apply(torch.ones_like(x), torch.rand_like)


#: Draws of numbers of the shape (3,), from a tensor of this shape.
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(torch.ones_like(x), 0.5),
    "two draws": lambda x: torch.randn(3) + torch.rand_like(x),
    "fill": lambda x: torch.empty(3).uniform_(),
    "empty_like": lambda x: torch.empty_like(x).normal_(),
    "next_key": lambda x: random.normal(next_key(), (3,)),
    "scan": scanned,
    "remat": recomputed,
    "function": nested,
    "module": lambda x: nn.Dropout(0.5)(torch.ones_like(x)),
}


def inside(draw: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return (Noisy.apply(x, draw) + torch.rand(3)) ** 2


def outside(draw: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return (Plus.apply(x, draw(x)) + torch.rand(3)) ** 2


Row = Callable[[Tensor, Tensor], Tensor]


def slope(f: Row) -> Row:
    return lambda x, key: ftrain.value_and_grad(lambda x: (f(x, key) ** 2).sum())(x)[1]


def pushed(f: Row) -> Row:
    return lambda x, key: torch.func.jvp(lambda x: f(x, key), (x,), (torch.ones_like(x),))[1]


def functional(f: Row) -> Row:
    return lambda x, key: torch.func.grad(lambda x: (f(x, key) ** 2).sum())(x)


def dual(f: Row) -> Row:
    def tangent(x: Tensor, key: Tensor) -> Tensor:
        with forward_ad.dual_level():
            result = forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)), key))
            return result.primal + result.tangent

    return tangent


def rows(f: Row) -> Row:
    return lambda x, key: torch.vmap(f)(torch.stack([x, x * 2]), random.split(key))


def rows_of_keys(f: Row) -> Row:
    return lambda x, key: torch.vmap(f, (None, 0))(x, random.split(key))


def rows_of_inputs(f: Row) -> Row:
    return lambda x, key: torch.vmap(f, (0, None))(torch.stack([x, x * 2]), key)


def columns(f: Row) -> Row:
    return lambda x, key: torch.vmap(f, (1, 1), 1)(
        torch.stack([x, x * 2], 1), random.split(key).T.contiguous()
    )


COMPOSED: dict[str, Callable[[Row], Row]] = {
    "plain": lambda f: f,
    "value_and_grad": slope,
    "func.grad": functional,
    "jvp": pushed,
    "dual_level": dual,
    "second order": lambda f: slope(slope(f)),
    "second order of func.grad": lambda f: functional(functional(f)),
    "jvp of gradient": lambda f: pushed(slope(f)),
    "gradient of jvp": lambda f: slope(pushed(f)),
    "vmap": rows,
    "vmap over keys": rows_of_keys,
    "vmap over inputs": rows_of_inputs,
    "vmap of columns": columns,
    "vmap of gradient": lambda f: rows(slope(f)),
    "gradient of vmap": lambda f: slope(rows(f)),
    "func.grad of vmap": lambda f: functional(rows(f)),
    "vmap of vmap": lambda f: rows(rows(f)),
    "vmap over keys of vmap over inputs": lambda f: rows_of_keys(rows_of_inputs(f)),
    "vmap over inputs of gradient of vmap over keys": lambda f: rows_of_inputs(
        slope(rows_of_keys(f))
    ),
    "jvp of vmap": lambda f: pushed(rows(f)),
    "jvp of vmap of gradient": lambda f: pushed(rows(functional(f))),
    "dual_level of vmap": lambda f: dual(rows(f)),
}


def with_key(f: Callable[[Tensor], Tensor]) -> Row:
    def row(x: Tensor, key: Tensor) -> Tensor:
        with keyed(key):
            return f(x)

    return row


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", COMPOSED)
def test_draws_in_the_forward_of_an_autograd_function_equal_those_outside(
    name: str, compiled: bool
) -> None:
    for draw in DRAWS.values():
        found, expected = (
            COMPOSED[name](with_key(functools.partial(f, draw))) for f in (inside, outside)
        )
        if compiled:
            found = ftrain.compile(found, backend="eager")
        assert_same_bits(found(X[0], KEY), expected(X[0], KEY))


@pytest.mark.parametrize("name", ["gradient of vmap", "vmap", "jvp", "func.grad"])
def test_draws_in_the_forward_of_an_autograd_function_use_a_key_made_outside_of_transforms(
    name: str,
) -> None:
    for draw in DRAWS.values():
        found = []
        for f in (inside, outside):
            with keyed(KEY):
                found.append(COMPOSED[name](lambda x, _, f=f, draw=draw: f(draw, x))(X[0], KEY))
        assert_same_bits(*found)


def drawing_in(
    method: str, by_rule: bool = False, draw: Callable[[], object] = lambda: torch.rand(3)
) -> Any:
    """Return an autograd function of `x` that draws in one of its static methods."""

    def drawn(name: str) -> None:
        if name == method:
            draw()

    class Draws(torch.autograd.Function):
        generate_vmap_rule = not by_rule

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            drawn("forward")
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
            drawn("setup_context")

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            drawn("backward")
            return g

        @staticmethod
        def jvp(ctx: Any, t: Tensor) -> Tensor:
            drawn("jvp")
            return t.clone()

    def rule(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
        drawn("vmap")
        return Draws.apply(x), in_dims[0]

    if by_rule:
        Draws.vmap = staticmethod(rule)  # type: ignore[method-assign]
    return Draws


SETUP = "in the setup_context of the autograd function Draws.*once for each of them"
JVP = "in the jvp of the autograd function Draws.*for each forward derivative"
RULE = "in the vmap of the autograd function Draws.*once for all rows"
BACKWARD = (
    "(?s)in a backward pass.*a backward that calls keyed_body with a key that its forward saved"
)

#: Method that draws, whether the function has a `vmap` of its own, transforms, and the message.
REFUSED = [
    ("setup_context", False, "func.grad", SETUP),
    ("setup_context", False, "jvp", SETUP),
    ("setup_context", False, "vmap", SETUP),
    ("jvp", False, "jvp", JVP),
    ("jvp", False, "dual_level", JVP),
    ("jvp", False, "jvp of vmap of gradient", JVP),
    ("vmap", True, "vmap", RULE),
    ("vmap", True, "gradient of vmap", RULE),
    ("forward", True, "vmap", RULE),
    (
        "forward",
        True,
        "vmap over keys",
        "in the forward of the autograd function Draws.*does not map over its arguments",
    ),
]


@pytest.mark.parametrize(("method", "by_rule", "name", "message"), REFUSED)
def test_draw_in_another_method_of_an_autograd_function_raises_with_its_name_and_line(
    method: str, by_rule: bool, name: str, message: str
) -> None:
    f = COMPOSED[name](with_key(drawing_in(method, by_rule).apply))
    for each in (f, ftrain.compile(f, backend="eager")):
        with pytest.raises(UnkeyedRandomError, match=f"(?s){message}") as error:
            each(X[0], KEY)
        assert "test_autograd_functions.py:" in str(error.value)
        assert "Draws.apply(x, torch.rand(x.shape))" in str(error.value)


@pytest.mark.parametrize(("method", "by_rule", "name", "message"), REFUSED[:-1])
def test_draw_in_another_method_raises_with_a_key_made_outside_of_transforms(
    method: str, by_rule: bool, name: str, message: str
) -> None:
    f = COMPOSED[name](lambda x, _: drawing_in(method, by_rule).apply(x))
    with keyed(KEY), pytest.raises(UnkeyedRandomError, match=f"(?s){message}"):
        f(X[0], KEY)


@pytest.mark.parametrize("name", ["value_and_grad", "func.grad", "vmap of gradient"])
def test_draw_in_a_backward_under_transforms_raises(name: str) -> None:
    f = COMPOSED[name](lambda x, _: drawing_in("backward").apply(x))
    with keyed(KEY), pytest.raises(UnkeyedRandomError, match=BACKWARD):
        f(X[0], KEY)


def test_draw_in_a_setup_context_outside_of_transforms_uses_the_key() -> None:
    drawn: list[Tensor] = []
    function = drawing_in("setup_context", draw=lambda: drawn.append(torch.rand(3)))
    with keyed(KEY):
        function.apply(X[0])
    with keyed(KEY):
        assert_same_bits(drawn, [torch.rand(3)])


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("setup_context", "func.grad"),
        ("setup_context", "vmap"),
        ("jvp", "jvp"),
        ("jvp", "dual_level"),
        ("forward", "gradient of vmap"),
        ("backward", "vmap of gradient"),
    ],
)
def test_methods_of_autograd_functions_may_draw_in_a_keyed_block_of_their_own(
    method: str, name: str
) -> None:
    drawn: list[Any] = []

    def draw() -> None:
        with keyed(KEY):
            drawn.append(torch.rand(3))

    COMPOSED[name](with_key(drawing_in(method, draw=draw).apply))(X[0], KEY)
    with keyed(KEY):
        assert_same_bits(drawn[0], torch.rand(3))
