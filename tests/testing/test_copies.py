"""Test that copies of trees have the bytes, strides and sharing of the originals, in separate memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftrain.testing._copies import copied
from ftrain.testing.difference import first_difference

DTYPES = [torch.float32, torch.uint8, torch.complex128, torch.bfloat16]


@st.composite
def views(draw: st.DrawFn) -> list[torch.Tensor]:
    """Return views of one storage, of different dtypes, offsets, shapes and strides."""
    storage = torch.arange(512, dtype=torch.int64).view(torch.uint8).untyped_storage()
    found = []
    for _ in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 3), max_size=2))
        strides = [draw(st.integers(0, 4)) for _ in shape]
        offset = draw(st.integers(0, 200))
        new = torch.empty(0, dtype=dtype)
        found.append(new.set_(storage, offset, tuple(shape), tuple(strides)))
    return found


def addresses(tensors: list[torch.Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors if x.numel()]


@given(views())
def test_copies_share_memory_as_the_originals_do(originals: list[torch.Tensor]) -> None:
    new = copied(originals)
    assert first_difference(new, originals) is None
    assert [x.shape for x in new] == [x.shape for x in originals]
    ours, theirs = addresses(new), addresses(originals)
    assert [x - ours[0] for x in ours] == [x - theirs[0] for x in theirs]
    if len(ours) > 1:  # each alone is a clone, whose strides are dense
        pairs = zip(new, originals, strict=True)
        assert all(a.stride() == b.stride() for a, b in pairs if a.numel())
    own = {x.untyped_storage().data_ptr() for x in new}
    assert not own & {x.untyped_storage().data_ptr() for x in originals if x.numel()}


def test_copy_of_a_tree_has_one_copy_of_a_shared_tensor() -> None:
    weight = torch.ones(3, requires_grad=True)
    new = copied({"a": weight, "b": weight, "n": [1]})
    assert new["a"] is new["b"]
    assert new["a"].requires_grad
    assert new["a"].is_leaf


def test_copy_of_two_rows_does_not_copy_the_data_set() -> None:
    data = torch.zeros(1 << 20)
    new = copied((data[10:20], data[15:30]))
    assert new[0].untyped_storage().nbytes() < 1000


@pytest.mark.parametrize(
    "leaf",
    [torch.ones(2, device="meta"), torch.eye(3).to_sparse(), torch.ones(2, 0), (x for x in "")],
)
def test_leaves_that_are_not_tensors_are_copied_once_or_returned_unchanged(leaf: Any) -> None:
    new, again = copied([leaf, leaf])
    assert new is again
    assert type(new) is type(leaf)
