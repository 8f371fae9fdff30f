"""Programs with branches and loops are found in inductor's cache, each under a key of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.utils import counters

import ftrain

pytestmark = pytest.mark.inductor

Make = Callable[[float], Callable[[torch.Tensor], torch.Tensor]]


def branch(c: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: ftrain.cond(x.sum() > 0, lambda x: x * c, lambda x: x - c, x)


def branch_of_captured(c: float) -> Callable[[torch.Tensor], torch.Tensor]:
    w = torch.full((3,), c)
    return lambda x: ftrain.cond(x.sum() > 0, lambda x: x * w, lambda x: x - w, x)


def loop(c: float) -> Callable[[torch.Tensor], torch.Tensor]:
    start = torch.tensor(0)
    return lambda x: ftrain.while_loop(
        lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] * c), (start, x)
    )[1]


def long_scan(c: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: ftrain.scan(lambda y, _: (y + c, None), x, length=200)[0]


CASES: dict[str, tuple[Make, Callable[[float], float]]] = {
    "branch": (branch, lambda c: c),
    "branch of a captured tensor": (branch_of_captured, lambda c: c),
    "loop": (loop, lambda c: c * c),
    "long scan": (long_scan, lambda c: 1 + 200 * c),
}


@pytest.mark.parametrize("name", CASES)
def test_inductor_cache_distinguishes_programs_by_the_bodies_of_branches_and_loops(
    name: str,
) -> None:
    make, right = CASES[name]

    def compiled(c: float) -> tuple[float, int]:
        before = counters["inductor"]["fxgraph_cache_hit"]
        value = ftrain.compile(make(c))(torch.ones(3))[0].item()
        return value, counters["inductor"]["fxgraph_cache_hit"] - before

    assert compiled(2.0)[0] == right(2.0)
    assert compiled(2.0) == (right(2.0), 1)
    assert compiled(3.0)[0] == right(3.0)
