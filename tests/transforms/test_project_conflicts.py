"""Gradient surgery equals its definition, and its result conflicts with no task if there are two."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain.core import tree
from ftrain.transforms.project_conflicts import _STREAM, _combined


def by_definition(grads: list[torch.Tensor], key: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(grads[0])
    for i, original in enumerate(grads):
        g = original.clone()
        order = ftrain.random.permutation(key, len(grads), folds=(_STREAM, i)).tolist()
        for j in order:
            overlap = float(g @ grads[j])
            if j != i and overlap < 0:
                g = g - overlap / float(grads[j] @ grads[j]) * grads[j]
        total = total + g
    return total


def as_trees(grads: list[torch.Tensor]) -> list[Any]:
    return [{"a": g[:2], "b": g[2:].reshape(1, -1)} for g in grads]


@given(st.integers(1, 4), st.integers(0, 999))
@settings(max_examples=15)
def test_projected_gradients_equal_the_definition_of_pcgrad(n: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    grads = [torch.randn(5, generator=g, dtype=torch.float64) for _ in range(n)]
    key = ftrain.random.key(seed)
    found = torch.cat([x.reshape(-1) for x in tree.leaves(_combined(as_trees(grads), key))])
    torch.testing.assert_close(found, by_definition(grads, key), rtol=1e-10, atol=1e-12)
    if n == 2:
        assert all(float(found @ each) > -1e-10 for each in grads)


def test_gradient_of_zero_conflicts_with_no_other_gradient() -> None:
    grads = [torch.zeros(5), torch.ones(5)]
    found = _combined(as_trees(grads), ftrain.random.key(0))
    assert all(torch.equal(x, torch.ones_like(x)) for x in tree.leaves(found))
