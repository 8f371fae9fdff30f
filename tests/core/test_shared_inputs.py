"""Loops and branches whose inputs share memory with each other or with captured tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor

import ftrain
from tests.compile.cases import same_bytes

X = torch.linspace(-1, 1, 9).view(3, 3)

#: Square matrices, most of them views of one tensor.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda x: x,
    "view": lambda x: x[:],
    "transposed": lambda x: x.T,
    "expanded": lambda x: x[1].expand(3, 3),
    "expanded twice": lambda x: x[0, 0].expand(3, 3),
    "diagonals": lambda x: x.as_strided((3, 3), (3, 1)),
    "overlapping": lambda x: x.as_strided((3, 3), (2, 1)),
    "computed": lambda x: x * 2,
    "view of a constant": lambda x: torch.ones(1).expand(3, 3),
}
names = st.sampled_from(sorted(VIEWS))


def scanned(a: Tensor, b: Tensor, captured: tuple[Tensor, ...], xs: Tensor) -> Any:
    def body(carry: Any, row: Tensor) -> Any:
        a, b = carry
        return (b + captured[0] * row, a * 0.5 + captured[1]), a

    return ftrain.scan(body, (a, b), xs)


def repeated(a: Tensor, b: Tensor, captured: tuple[Tensor, ...], xs: Tensor) -> Any:
    def body(carry: Any) -> Any:
        n, a, b = carry
        return n + 1, b + captured[0] * xs, a * 0.5 + captured[1]

    return ftrain.while_loop(lambda carry: carry[0] < 3, body, (torch.tensor(0), a, b))


def chosen(a: Tensor, b: Tensor, captured: tuple[Tensor, ...], xs: Tensor) -> Any:
    return ftrain.cond(
        xs.sum() > a.sum(),
        lambda a, b: (a + captured[0], b),
        lambda a, b: (b, captured[1] * a),
        a,
        b,
    )


FORMS = {"scan": scanned, "while_loop": repeated, "cond": chosen}


def program(form: str, views: list[str]) -> Callable[[Tensor], Any]:
    def run(x: Tensor) -> Any:
        a, b, c, d, xs = (VIEWS[name](x) for name in views)
        return FORMS[form](a, b, (c, d), xs)

    return run


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25)
@given(views=st.lists(names, min_size=5, max_size=5))
@example(["view of a constant", "computed", "transposed", "computed", "computed"])
def test_traced_loops_with_inputs_that_share_memory_equal_eager(
    form: str, views: list[str]
) -> None:
    run = program(form, views)
    assert same_bytes(ftrain.compile(run, backend="eager")(X), run(X))


@pytest.mark.parametrize("form", ["scan", "cond"])
@settings(max_examples=12)
@given(views=st.lists(names, min_size=5, max_size=5))
def test_traced_gradients_through_inputs_that_share_memory_match_eager(
    form: str, views: list[str]
) -> None:
    run = program(form, views)
    pulled = ftrain.value_and_grad(
        lambda x: sum(leaf.square().sum() for leaf in ftrain.tree.leaves(run(x)))
    )
    expected, found = pulled(X)[1], ftrain.compile(pulled, backend="eager")(X)[1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.inductor
def test_inductor_compiled_loops_accept_inputs_that_share_memory() -> None:
    programs = [
        program("scan", ["itself", "itself", "itself", "transposed", "view"]),
        program("scan", ["expanded", "overlapping", "view", "itself", "itself"]),
        program("while_loop", ["transposed", "expanded", "itself", "view", "itself"]),
        program("cond", ["itself", "expanded twice", "itself", "view", "itself"]),
    ]

    def run(x: Tensor) -> Any:
        return [each(x) for each in programs]

    compiled = ftrain.compile(run)
    for x in (X, -X):
        torch.testing.assert_close(compiled(x), run(x))
