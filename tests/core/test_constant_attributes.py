"""Constant attributes of containers tell their structures, and so compiled programs, apart."""

from __future__ import annotations

import collections
import enum
import fractions
from typing import Any

import pytest
import torch

import ftrain
from ftrain import tree
from ftrain.core.errors import RecompileWarning
from ftrain.testing import assert_same_bits


class Tagged(collections.UserDict[str, Any]):
    """Mapping with one attribute that is not an item."""

    def __init__(self, tag: Any) -> None:
        super().__init__({"x": torch.ones(2, dtype=torch.int64)})
        self.tag = tag


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


NAN = float("nan")
SAME = [
    (NAN, -NAN), ((NAN, 1), (-NAN, 1)), (0.5, 0.5), (complex(NAN, 0), complex(-NAN, 0)), ((), ()),
    (frozenset({1, 2}), frozenset({2, 1})), (torch.Size([1]), torch.Size([1])), ([1], [2]),
    ((1, [1]), (1, [2])), ({"a": 1}, {"a": 2}), (Colour.RED, Colour.RED), (int, int),
    (fractions.Fraction(1), object()),
]  # fmt: skip
DIFFERENT = [
    (1, 1.0), (1, True), (0.0, -0.0), (1, 2), ("a", "b"), ("a", b"a"), (None, False), (1, 1 + 0j),
    (complex(0.0, 0.0), complex(0.0, -0.0)), (complex(0.0, 0.0), complex(-0.0, 0.0)),
    ((1,), (1.0,)), ((1,), (True,)), ((0.0,), (-0.0,)), ((1, (2,)), (1, (2.0,))), ((1,), (1, 1)),
    (frozenset({1}), frozenset({1.0})), (torch.Size([1]), (1,)), (int, float), (1, [1]),
    (Colour.RED, Colour.BLUE), (torch.float32, torch.float64), ((Colour.RED,), (1,)),
    (torch.device("cpu"), torch.device("meta")), (torch.strided, torch.sparse_coo),
    (torch.contiguous_format, torch.channels_last), (torch.ones(1), 1.0), (torch.ones(1), [1]),
]  # fmt: skip


@pytest.mark.parametrize(("one", "two"), SAME, ids=lambda x: type(x).__name__)
def test_containers_whose_attributes_no_program_distinguishes_have_one_structure(
    one: Any, two: Any
) -> None:
    assert tree.structure(Tagged(one)) == tree.structure(Tagged(two))
    assert hash(tree.structure(Tagged(one))) == hash(tree.structure(Tagged(two)))


@pytest.mark.parametrize(("one", "two"), DIFFERENT, ids=str)
def test_containers_whose_constant_attributes_differ_have_different_structures(
    one: Any, two: Any
) -> None:
    assert tree.structure(Tagged(one)) != tree.structure(Tagged(two))


@pytest.mark.parametrize(("one", "two"), [((2,), (2.0,)), (0j, complex(0.0, -0.0))])
def test_compiled_function_computes_with_the_constant_attribute_of_each_batch(
    one: Any, two: Any
) -> None:
    def fn(batch: Any) -> Any:
        return torch.tensor(batch.tag) * batch["x"]

    compiled = ftrain.compile(fn, backend="eager")
    assert_same_bits(compiled(Tagged(one)), fn(Tagged(one)))
    with pytest.warns(RecompileWarning):
        assert_same_bits(compiled(Tagged(two)), fn(Tagged(two)))
