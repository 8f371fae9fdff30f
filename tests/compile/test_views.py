"""Views before matrix products in inductor code, whose layouts may differ from the trace's.

More chains: `FTRAIN_CAMPAIGN=1 pytest tests/compile/test_views.py`.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import ftrain
from ftrain.core.compile import compile
from tests.compile.views import chain, chains

CAMPAIGN = 30 if os.environ.get("FTRAIN_CAMPAIGN") else 0
X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def assert_close(found, expected):
    """Raise unless sums of up to a hundred terms agree up to their order; measured 3e-7."""
    for a, b in zip(ftrain.tree.leaves(found), ftrain.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert float((a.double() - b.double()).norm()) <= 1e-5 * float(b.double().norm())


class Cached(nn.Module):
    """Model with attention over an empty cache and the new keys."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 3).permute(2, 0, 3, 1, 4)
        k, v = (torch.cat([torch.tensor([]), part], dim=-2) for part in (k, v))
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def written_through_a_view(x):
    y = torch.cat([torch.tensor([]), x.transpose(0, 1)]).contiguous()
    y.view(-1)[1:3] = 7.0
    return y @ y.transpose(-1, -2)


@pytest.mark.inductor
def test_compiled_products_of_views_of_empty_tensors_match_eager():
    """One program has a step through an empty cache, a write through a view, and random chains."""
    apply = ftrain.bind(Cached)
    params, buffers = apply.init(ftrain.random.key(0))
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))

    def loss(params):
        return apply(params, buffers, ftrain.random.key(1), x)[0].square().sum()

    def fn(params):
        step = ftrain.value_and_grad(loss)(params)
        return step, written_through_a_view(X), [chain(X, seed) for seed in chains(X, 2000, 5)]

    assert_close(compile(fn)(params), fn(params))


@pytest.mark.inductor
@pytest.mark.skipif(not CAMPAIGN, reason="FTRAIN_CAMPAIGN is not set")
@pytest.mark.parametrize("first", range(0, 1000 * CAMPAIGN, 1000))
def test_compiled_products_of_random_views_and_their_gradients_match_eager(first):
    def fn(x):
        return [chain(x, seed) for seed in chains(X, first, 12)], [
            ftrain.value_and_grad(lambda x, seed=seed: chain(x, seed).square().sum())(x)
            for seed in chains(X, first + 500, 4)
        ]

    assert_close(compile(fn)(X), fn(X))
