"""Split of a key computed by inductor's kernels: the bits of the operator, without a call of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain.core.random import _cpu_kernel, _operators
from tests.campaign import examples

WORDS = st.integers(-(2**31), 2**31 - 1)
EDGES = (0, 1, -1, 2**31 - 1, -(2**31))


def key_of(*words: int) -> torch.Tensor:
    return torch.tensor(words, dtype=torch.int32)


def splits_of(shape):
    @ftrain.compile
    def splits(key, x):
        keys = ftrain.random.split(key, shape)
        return keys + 0, x * 2.0

    return splits


@pytest.fixture(scope="module")
def compiled():
    return {shape: splits_of(shape) for shape in (1, 2, (2, 2), 5)}


@pytest.mark.parametrize("shape", [1, 2, (2, 2), 5], ids=str)
@settings(max_examples=examples(20, 50), deadline=None)
@given(WORDS, WORDS)
def test_compiled_split_of_a_key_equals_the_eager_split(compiled, shape, first, second):
    for words in ((first, second), *((a, b) for a in EDGES for b in EDGES)):
        key = key_of(*words)
        keys, _ = compiled[shape](key, torch.ones(3))
        assert keys.tolist() == ftrain.random.split(key, shape).tolist()


@pytest.mark.parametrize(("shape", "calls"), [(1, 0), (2, 0), ((2, 2), 0), (5, 1)], ids=str)
def test_compiled_split_into_at_most_four_keys_is_inlined_and_calls_no_custom_operator(
    compiled, shape, calls, monkeypatch
):
    called = []
    draw = _cpu_kernel.Kernel.draw
    monkeypatch.setattr(
        _cpu_kernel.Kernel, "draw", lambda self, *args: called.append(1) or draw(self, *args)
    )
    key = key_of(3, 4)
    compiled[shape](key, torch.ones(3))  # compiles at most here
    called.clear()
    compiled[shape](key, torch.ones(3))
    if _cpu_kernel.kernel() is not None:
        assert len(called) == calls


def test_compiled_split_after_fold_in_or_of_several_keys_equals_the_eager_split():
    @ftrain.compile
    def folded(key, keys):
        one = _operators.threefry_split(key, [7, 9], [2])
        return one + 0, torch.vmap(ftrain.random.split)(keys) + 0

    key, keys = key_of(5, 6), torch.arange(6, dtype=torch.int32).reshape(3, 2)
    one, several = folded(key, keys)
    assert one.tolist() == _operators.threefry_split(key, [7, 9], [2]).tolist()
    assert several.tolist() == [ftrain.random.split(each).tolist() for each in keys]
