"""The compiled reader of a tree structure agrees with optree on every tree."""

from __future__ import annotations

import collections
import math
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from ftrain.core import tree
from ftrain.core.compile._reader import compile_reader, static_key, static_value
from tests.compile.cases import Pair, tensors, trees

statics = st.one_of(
    st.integers(-1, 1),
    st.booleans(),
    st.sampled_from([0.0, -0.0, 1.0, math.nan]),
    st.sampled_from([0j, complex(-0.0, 0.0), complex(0.0, -0.0), complex(math.nan, 1.0), 1 + 0j]),
    st.text(max_size=1),
)
leaves = st.one_of(tensors(), statics)


def reading(args, kwargs):
    """Return what optree finds: the tensors, and all other values that a reader compares."""
    flat, treedef = tree.flatten((args, kwargs))
    found = [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]
    keys = [static_key(x) if not isinstance(x, torch.Tensor) else "tensor" for x in flat]
    return found, (treedef, keys)


@given(trees(leaves), trees(leaves), trees(leaves))
def test_generated_leaf_reader_reads_its_own_structure_and_rejects_all_others(first, second, third):
    read = compile_reader((first, second), {"k": third})
    expected, kind = reading((first, second), {"k": third})
    assert list(map(id, read((first, second), {"k": third}))) == list(map(id, expected))
    for args, kwargs in [
        ((second, first), {"k": third}),
        ((first, third), {"k": second}),
        ((first,), {"k": third}),
        ((first, second), {}),
        ((first, second, third), {"k": third}),
        ((first, second), {"j": third}),
    ]:
        found = read(args, kwargs)
        other, other_kind = reading(args, kwargs)
        if kind == other_kind:
            assert list(map(id, found)) == list(map(id, other))
        else:
            # A tensor where a container was, or the reverse, is left to the guard on tensors.
            assert found is None or not all(isinstance(leaf, torch.Tensor) for leaf in found)


@given(statics)
def test_key_of_a_constant_holds_its_value(value):
    again = static_value(static_key(value))
    assert type(again) is type(value)
    assert repr(again) == repr(value)


@given(statics, statics)
def test_constants_have_one_key_if_they_have_one_type_and_one_text(first, second):
    same = (type(first), repr(first)) == (type(second), repr(second))
    assert (static_key(first) == static_key(second)) == same


class Point(NamedTuple):
    x: object
    y: object


@pytest.mark.parametrize(
    "value",
    [
        Point(torch.ones(1), 2),
        collections.OrderedDict(b=torch.ones(1), a=torch.ones(2)),
        collections.deque([torch.ones(1), torch.ones(2)]),
        {"one": torch.ones(1)},
        {3: torch.ones(1), 1: torch.ones(2)},
        Pair({}, ()),
        [None, (None, torch.ones(1))],
    ],
    ids=lambda value: type(value).__name__,
)
def test_generated_leaf_reader_reads_every_kind_of_container(value):
    read = compile_reader((value,), {})
    expected = [x for x in tree.leaves(value) if isinstance(x, torch.Tensor)]
    assert list(map(id, read((value,), {}))) == list(map(id, expected))
    assert read(([value],), {}) is None or not expected


def test_generated_leaf_reader_rejects_a_dataclass_with_the_same_fields():
    @tree.register_dataclass
    class Twin:
        a: object
        b: object

    tensors = torch.ones(1), torch.ones(2)
    read = compile_reader((Pair(*tensors),), {})
    assert [each.shape for each in read((Pair(*tensors),), {})] == [(1,), (2,)]
    assert read((Twin(*tensors),), {}) is None
