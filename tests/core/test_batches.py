"""Law 12: a batch is its leaves, whatever containers hold them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ftrain
from ftrain import tree
from ftrain.loop import _memory
from ftrain.testing import assert_same_bits
from tests.core import batches
from tests.core.batches import FORMS, rows

names = st.sampled_from(sorted(FORMS))


@functools.cache
def made(accumulate: int) -> Any:
    found = batches.steps(accumulate)
    return found, found.init_state(0)


@functools.cache
def expected(accumulate: int, k: int) -> Any:
    """The result for a plain dict, in micro-batches of the recovery if k is not 1."""
    steps, state = made(accumulate)
    x, y = rows()
    return steps.train_step(state, _memory.cut({"x": x, "y": y}, k))


def build(nesting: list[str]) -> Any:
    """The batch in the innermost container, that in another one beside a vector of y, and so on."""
    x, y = rows()
    batch: Any = FORMS[nesting[0]](x, y)
    for name in nesting[1:]:
        batch = FORMS[name if name != "Plain" else "Frozen"](batch, y)
    return batch


@given(
    nesting=st.lists(names, min_size=1, max_size=3),
    accumulate=st.sampled_from([1, 2, 3, 4]),
    cut=st.booleans(),
)
def test_a_batch_is_its_leaves(nesting: list[str], accumulate: int, cut: bool) -> None:
    steps, state = made(accumulate)
    batch = build(nesting)
    before = [x.clone() for x in tree.leaves(batch)]
    k = 12 if cut else 1
    found = steps.train_step(state, _memory.cut(batch, k))
    assert_same_bits(found, expected(accumulate, k))
    assert_same_bits(tree.leaves(batch), before)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_compiled_steps_take_every_container(name: str) -> None:
    steps, state = made(2)
    step = ftrain.compile(steps.train_step, backend="eager")
    for _ in range(2):  # traced, and read by the structure's reader
        assert_same_bits(step(state, build(["list", name, "Encoding"])), expected(2, 1))
    assert step.n_compiles == 1


@pytest.mark.parametrize("name", sorted(FORMS))
def test_rebuilding_keeps_class_attributes_and_order(name: str) -> None:
    batch = FORMS[name](*rows())
    again = tree.map(lambda x: x + 1, batch)
    assert type(again) is type(batch)
    assert torch.equal(batches.first(again), batches.first(batch) + 1)
    if isinstance(batch, dict):
        assert list(again) == list(batch)
    if name == "Encoding":
        assert again._encodings is batch._encodings
        assert again._n_sequences == 1
    if name in ("Mirrored", "Itself"):
        assert again.x is again["x"]
