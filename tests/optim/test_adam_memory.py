"""Adam on large leaves computes in memory of its own, with the bits of the operators one by one."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

import ftrain
from ftrain import optim, tree
from ftrain.optim import _leaves
from ftrain.testing import assert_same_bits

SIZES = {"large": (96, 128), "vector": (9001,), "small": (3, 5)}
OPTIMIZERS = {
    "adam": optim.adam(0.1),
    "adamw": optim.adamw(optim.warmup_cosine(0.1, 2, 10), weight_decay=0.1),
    "tensors": optim.adamw(torch.tensor(0.1), torch.tensor(0.8), torch.tensor(0.9)),
    "scale_by_adam": optim.scale_by_adam(eps=0.0),
}


def trees(layout: str, dtype: torch.dtype) -> tuple[Any, list[Any]]:
    """Return parameters and the gradients of three steps, some of which are zero or tiny."""
    generator = torch.Generator().manual_seed(0)

    def drawn(scale: float = 1.0) -> Any:
        made = {n: torch.randn(s, generator=generator) * scale for n, s in SIZES.items()}
        for leaf in made.values():
            leaf.view(-1)[:7] *= torch.tensor([0.0, 1e-30, 1e-20, 1e-38, 1e10, -0.0, 1e-8])
        return {n: x.to(dtype) for n, x in made.items()}

    grads = [drawn(10.0**-i) for i in range(3)]
    if layout == "transposed":
        grads = [tree.map(lambda g: g if g.ndim == 1 else g.T.contiguous().T, g) for g in grads]
    return drawn(), grads


def steps(optimizer: Any, params: Any, grads: list[Any]) -> Any:
    state, updates = optimizer.init(params), []
    for grad in grads:
        update, state = optimizer.update(grad, state, params)
        updates.append(update)
    return updates, state


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("contiguous", torch.float32),
        ("transposed", torch.float32),
        ("contiguous", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_adam_in_own_memory_has_the_bits_of_a_trace(
    name: str, layout: str, dtype: torch.dtype
) -> None:
    params, grads = trees(layout, dtype)
    before = tree.map(torch.clone, (params, grads))
    with torch.no_grad():
        own = steps(OPTIMIZERS[name], params, grads)
    assert_same_bits((params, grads), before)
    traced = ftrain.compile(
        lambda params, grads: steps(OPTIMIZERS[name], params, grads), backend="eager"
    )
    assert_same_bits(own, traced(params, grads))
    assert_same_bits(own, steps(OPTIMIZERS[name], params, grads))  # with grad mode on


def test_rules_allocate_each_result_if_gradients_or_transforms_may_read_it() -> None:
    x = torch.ones(_leaves._LARGE)
    assert not _leaves.overwrites(x, x)
    with torch.no_grad():
        assert _leaves.overwrites(x, x)
        assert not _leaves.overwrites(x, x.double())
        assert not _leaves.overwrites(x.view(2, -1), x.view(-1, 2).T)
        assert not _leaves.overwrites(x[:9])
        assert not _leaves.overwrites(torch.nn.Parameter(x))
        seen: list[bool] = []
        torch.vmap(lambda row: seen.append(_leaves.overwrites(row)) or row)(x.view(1, -1))
        torch.func.jvp(lambda y: seen.append(_leaves.overwrites(y)) or y, (x,), (x,))
        assert seen == [False, False]


def test_adam_computes_large_leaves_in_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def recorded(*tensors: torch.Tensor) -> bool:
        seen.append(_leaves.overwrites(*tensors))
        return seen[-1]

    monkeypatch.setattr(sys.modules[optim.adamw.__module__], "overwrites", recorded)
    params, grads = trees("contiguous", torch.float32)
    with torch.no_grad():
        steps(optim.adamw(0.1), params, grads[:1])
    assert seen == [
        True,
        False,
        True,
    ]  # large, small, vector: leaves are in the order of their names
