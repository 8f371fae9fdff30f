"""Nested loops and branches, compiled by inductor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ftrain
from tests.campaign import choice

XS = torch.arange(6.0).view(2, 3) / 4


def scanned(x: Tensor, body: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return ftrain.scan(lambda c, row: (body(c, row), None), torch.ones(3), x)[0]


def repeated(x: Tensor, body: Callable[[Tensor], Tensor]) -> Tensor:
    return ftrain.while_loop(lambda c: c.sum() < 9, lambda c: body(c) + 1, x)


def chosen(x: Tensor, body: Callable[[Tensor], Tensor]) -> Tensor:
    return ftrain.cond(x.sum() > 1, body, lambda x: x / 2, x)


def summed(x: Tensor) -> Tensor:
    return scanned(x.expand(2, 3), lambda c, row: c * row + 1)


def grown(x: Tensor) -> Tensor:
    return repeated(x, lambda c: c + x.abs())


def halved(x: Tensor) -> Tensor:
    return chosen(x, lambda x: x.sin())


INNER = {"scan": summed, "while_loop": grown, "cond": halved}
OUTER: dict[str, Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]] = {
    "scan": lambda x, inner: scanned(x, lambda c, row: inner(c * row)),
    "while_loop": lambda x, inner: repeated(x[1], lambda c: inner(c) + c),
    "cond": lambda x, inner: chosen(x[1], lambda x: inner(x) * x),
    "cond under vmap": lambda x, inner: torch.vmap(lambda row: chosen(row, inner))(x),
}


@pytest.mark.inductor
@pytest.mark.parametrize("outer", choice(["while_loop", "cond under vmap"], OUTER))
def test_inductor_compiled_nested_loops_match_eager(outer: str) -> None:
    def fn(x: Tensor) -> list[Tensor]:
        return [scanned(x, lambda c, row: c + row), *(OUTER[outer](x, f) for f in INNER.values())]

    compiled = ftrain.compile(fn)
    for x in (XS, XS - 1):
        torch.testing.assert_close(compiled(x), fn(x))


@pytest.mark.inductor
def test_inductor_compiled_gradients_through_nested_loops_match_eager() -> None:
    def fn(x: Tensor) -> Tensor:
        return OUTER["scan"](x, halved).square().sum() + OUTER["cond"](x, summed).sum()

    pulled = ftrain.value_and_grad(fn)
    compiled = ftrain.compile(pulled)
    for x in (XS, XS - 1):
        torch.testing.assert_close(compiled(x), pulled(x))
