"""Tensors unwrapped from running transforms of torch.func, and wrapped again, in every nesting."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ftrain.core import _torch_levels as levels
from ftrain.testing import assert_same_bits

F = Callable[[Tensor], Any]
X = torch.linspace(-1, 1, 6).reshape(2, 3)


# Transforms of a function of one tensor; `n` is the size of a new mapped dimension.
def rows(f: F, n: int) -> F:
    return lambda x: torch.vmap(f)(torch.stack([x + i for i in range(n)]))


def columns(f: F, n: int) -> F:
    return lambda x: torch.vmap(f, in_dims=1)(torch.stack([x + i for i in range(n)], 1))


def unmapped(f: F, n: int) -> F:
    return lambda x: torch.vmap(lambda _: f(x))(torch.zeros(n))


def forward(f: F, n: int) -> F:
    return lambda x: torch.func.jvp(f, (x,), ((x * n).cos(),))


def constant(f: F, n: int) -> F:
    return lambda x: torch.func.jvp(lambda _: f(x), (torch.zeros(()),), (torch.ones(()),))


def reverse(f: F, n: int) -> F:
    return lambda x: torch.func.vjp(f, x)[0]


MAPS = (rows, columns, unmapped)
TRANSFORMS = (*MAPS, forward, constant, reverse)
NESTINGS = [
    nesting for depth in (1, 2, 3) for nesting in itertools.product(TRANSFORMS, repeat=depth)
    if depth < 3 or nesting.count(forward) + len({*nesting} & {rows, columns}) >= 2
]  # fmt: skip


def transformed(f: F, nesting: Any) -> F:
    """Return a function under transforms, the outermost first."""
    for depth, transform in reversed([*enumerate(nesting)]):
        f = transform(f, 2 + depth)
    return f


def doubled_below(x: Tensor) -> Tensor:
    """Return 2 x, computed from the plain tensors inside of `x` without the transforms."""
    parts = levels.lower(x)
    with levels.below():
        parts = [part * 2 for part in parts]
    return levels.lift(parts)


@pytest.mark.parametrize("first", TRANSFORMS)
def test_plain_parts_of_a_tensor_wrapped_again_are_the_tensor_with_rows_and_tangents(
    first: Any,
) -> None:
    for nesting in NESTINGS:
        if nesting[0] is first:
            found = transformed(doubled_below, nesting)(X)
            assert_same_bits(found, transformed(lambda x: x * 2, nesting)(X))


@pytest.mark.parametrize("nesting", [(rows,), (rows, constant), (constant, columns, constant)])
def test_plain_parts_of_integers_have_no_tangents(nesting: Any) -> None:
    numbers = torch.arange(6).reshape(2, 3)
    kinds = []

    def doubled(x: Tensor) -> Tensor:
        kinds.append(len(levels.lower(x)))
        return doubled_below(x)

    found = transformed(doubled, nesting)(numbers)
    assert_same_bits(found, transformed(lambda x: x * 2, nesting)(numbers))
    assert kinds == [1]


@pytest.mark.parametrize("first", TRANSFORMS)
def test_wrapped_tensor_tells_the_transforms_that_run_and_those_that_wrap_it(first: Any) -> None:
    def facts(x: Tensor) -> Tensor:
        dual, maps = nesting.count(forward), [t for t in nesting if t in MAPS]
        assert levels.n_mapped() == len(maps)
        assert levels.is_batched(x) == bool({rows, columns} & {*nesting})
        assert levels.has_tangents() == bool({forward, constant} & {*nesting})
        assert len(levels.tangent_levels(x)) == dual
        parts = levels.all_parts(x)
        plain = {id(part) for part in parts if levels.level_of(part) < 0}
        assert (len(plain), parts[0] is x) == (2**dual, True)
        sizes = tuple(2 + depth for depth, t in enumerate(nesting) if t in MAPS)
        lowered = levels.lower(x)
        assert [part.shape for part in lowered] == [sizes + X.shape] * len(lowered)
        assert len(lowered) == 2 ** (dual + nesting.count(constant))
        wrapping = [t for t in nesting if t not in (unmapped, constant)]
        assert levels.mapped_dim(x) == {rows: 0, columns: 1}.get(wrapping[-1] if wrapping else None)
        for depth in range(len(nesting) + 1):
            with levels.at_depth(depth):
                outer = [t for t in nesting[:depth] if t in MAPS]
                assert levels.n_mapped() == len(outer)
                assert levels.place()[0] == depth
        assert levels.is_transformed()
        seen.append(nesting)
        return x * 2

    seen: list[Any] = []
    tried = [nesting for nesting in NESTINGS if nesting[0] is first]
    for nesting in tried:
        transformed(facts, nesting)(X)
    assert seen == tried


def test_tensor_outside_of_transforms_is_its_own_plain_part() -> None:
    assert levels.lower(X) == [X]
    assert levels.lift([X]) is X
    assert levels.all_parts(X) == [X]
    assert levels.tangent_levels(X) == set()
    assert not levels.is_transformed()
    assert not levels.has_tangents()
    assert not levels.is_batched(X)
    assert levels.mapped_dim(X) is None
    assert levels.level_of(X) < 0
    assert levels.place()[0] == 0


def test_dual_tensor_outside_of_transforms_has_the_tangent_of_its_level() -> None:
    with forward_ad.dual_level():
        tangent = X.cos()
        dual = forward_ad.make_dual(X, tangent)
        whole, part = levels.all_parts(dual)
        assert whole is dual
        assert_same_bits(part, tangent)
        assert levels.tangent_levels(dual) == {0}
        assert levels.tangent_levels(X) == set()
        assert levels.is_transformed()
