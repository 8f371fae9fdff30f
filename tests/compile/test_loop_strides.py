"""Loops and branches over tensors of sizes 0 and 1, whose strides differ from those of new tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ftrain
from ftrain.core import tree
from ftrain.core._strides import contiguous, contiguous_strides
from tests.campaign import COMPILED, product
from tests.compile.cases import same_bytes

#: Small multiples of a quarter: machine code has exact sums and products of them, in any order.
X = (torch.arange(15.0, dtype=torch.float64).view(3, 5) - 3) / 4

#: Tensors with strides that `x.contiguous()` keeps, and `x[::5, 1:3]`, which has gaps.
STARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda x: x.sum().expand(1),
    "expanded twice": lambda x: x[0, :1].expand(1, 1),
    "row": lambda x: x[:1].T,
    "column": lambda x: x[:, :1].contiguous().T,
    "slice": lambda x: x[::5, 1:3],
    "empty": lambda x: x[:0].T,
}


def counted(body: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Apply `body` three times in a while_loop."""
    init = (start, torch.tensor(0))
    return ftrain.while_loop(lambda c: c[1] < 3, lambda c: (body(c[0]), c[1] + 1), init)[0]


LOOPS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "while": lambda s, x: counted(lambda c: c * 2 + 1, s),
    "while that keeps": lambda s, x: counted(lambda c: c, s),
    "while that captures": lambda s, x: counted(lambda c: s, s * 1),
    "scan": lambda s, x: ftrain.scan(lambda c, _: (c * 2 + 1, c), s, length=3),
    "scan that captures": lambda s, x: ftrain.scan(lambda c, _: (s, s), s * 2, length=3),
    "scan over": lambda s, x: ftrain.scan(lambda c, y: (y, c), s, torch.stack([s * 2, s * 3])),
    "cond": lambda s, x: ftrain.cond(x.sum() > 0, lambda a: a, lambda a: a * 2, s),
    "cond that captures": lambda s, x: ftrain.cond(x.sum() > 0, lambda: s, lambda: s * 2),
    "switch": lambda s, x: ftrain.switch(
        (x.sum() > 0).long(), [lambda a: a, lambda a: a * 2, lambda a: s], s
    ),
}


def gradient(f: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def total(x: Tensor) -> Tensor:
        return (sum(t.square().sum() for t in tree.leaves(f(x))) + x.sum()) ** 2

    return ftrain.value_and_grad(total)


FORMS: dict[str, Callable[[Callable[[Tensor], Any]], Callable[[Tensor], Any]]] = {
    "plain": lambda f: f,
    "gradient": gradient,
    "vmap of one row": lambda f: lambda x: torch.vmap(f)(x[None]),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x + 1,)),
}


CASES = [
    (start, loop, form)
    for start, loop, form in product([*STARTS], [*LOOPS], [*FORMS])
    if not (form == "gradient" and "while" in loop)  # refused, as for all other tensors
]


@pytest.mark.parametrize(("start", "loop", "form"), CASES)
def test_compiled_loops_over_tensors_of_size_one_equal_eager(
    start: str, loop: str, form: str
) -> None:
    def f(x: Tensor) -> Any:
        return LOOPS[loop](STARTS[start](x), x)

    run = FORMS[form](f)
    for x in (X, -X - 1):
        assert same_bytes(ftrain.compile(run, backend=COMPILED)(x), run(x))


@pytest.mark.parametrize("start", STARTS)
def test_result_of_contiguous_has_the_strides_of_a_new_tensor(start: str) -> None:
    x = STARTS[start](X)
    assert same_bytes(contiguous(x), x)
    assert contiguous(x).stride() == torch.empty(x.shape).stride() == contiguous_strides(x.shape)
    assert contiguous(X) is X
