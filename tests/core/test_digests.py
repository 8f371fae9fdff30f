"""Test digests of leaves."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftrain import tree
from ftrain.core._leaf_digest import row_digests, row_major

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]


@given(
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 2**20),
    st.data(),
)
def test_digest_depends_on_every_byte_but_not_on_the_memory_layout(
    shape: list[int], dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, shape, generator=generator).to(dtype)
    same = torch.stack([x, x], dim=-1)[..., 0]  # other strides
    assert tree.digests(same) == tree.digests(x)
    assert bytes(row_major(same)) == bytes(row_major(x))
    if dtype != torch.bfloat16:  # NumPy has none
        assert bytes(row_major(x)) == x.numpy().tobytes()
    if x.numel():
        other = x.clone()
        flat = other.view(-1) if other.ndim else other.reshape(1)
        flat.view(torch.uint8)[data.draw(st.integers(0, x.numel() * x.element_size() - 1))] ^= 1
        assert tree.digests(other) != tree.digests(x)


def test_tree_digests_differ_exactly_at_the_leaves_that_differ() -> None:
    a = {"w": torch.zeros(2), "n": [1, "one", None]}
    b = {"w": -torch.zeros(2), "n": [1, "one", None]}
    assert tree.digests(a)["['n'][0]"] == tree.digests(b)["['n'][0]"]
    assert tree.digests(a)["['w']"] != tree.digests(b)["['w']"]


def test_equal_values_of_different_types_have_different_digests() -> None:
    values = [1, 1.0, True, "1", 1j, torch.tensor(1), torch.tensor(1.0), torch.tensor([1])]
    assert len({tree.digests(value)[""] for value in values}) == len(values)


def test_digest_refuses_a_leaf_of_an_unsupported_class_and_names_its_path() -> None:
    with pytest.raises(TypeError, match=r"the leaf at \['a'\]: expected a tensor, a number or"):
        tree.digests({"a": object()})


def test_row_digests_of_permuted_rows_are_permuted_alike() -> None:
    x = torch.arange(12.0).reshape(4, 3)
    order = [2, 0, 3, 1]
    rows = list(row_digests(x))
    assert list(row_digests(x[order])) == [rows[i] for i in order]
    assert len(set(rows)) == 4
    assert list(row_digests(torch.empty(0, 3))) == []
    assert len(list(row_digests(torch.empty(3, 0)))) == 3


def test_digest_of_a_single_element_does_not_depend_on_its_stride() -> None:
    assert tree.digests(torch.ones(4)[::4]) == tree.digests(torch.ones(1))
    assert tree.digests(torch.ones(3, 4)[:, ::4]) == tree.digests(torch.ones(3, 1))


def test_digests_are_the_first_digits_of_a_sha256() -> None:
    """Digests that another release has logged are compared with those of this one."""
    x = torch.arange(6.0).reshape(2, 3)
    rows = [row.tobytes() for row in x.numpy()]
    whole = hashlib.sha256(b"leaf torch.float32 (2, 3)\0" + b"".join(rows)).hexdigest()
    assert tree.digests(x) == {"": whole[:16]}
    assert list(row_digests(x)) == [hashlib.sha256(row).hexdigest()[:8] for row in rows]
