"""`require_same` returns a copy, or raises if ranks differ."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ftrain.core._torch_layouts import require_same

VALUES = torch.linspace(0, 1, 6, dtype=torch.float64).reshape(3, 2).T


def test_require_same_returns_a_copy_if_all_ranks_have_the_same_numbers() -> None:
    table = torch.tensor([[1, 2], [1, 2], [1, 2]])
    found = require_same(VALUES, table, "shapes")
    assert torch.equal(found, VALUES)
    assert found.data_ptr() != VALUES.data_ptr()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = require_same(VALUES, table, "shapes")
    assert (fake.shape, fake.stride(), fake.dtype) == (found.shape, found.stride(), found.dtype)


@pytest.mark.parametrize("rows", [[[1, 2], [1, 3]], [[1, 2], [0, 2], [1, 2]]])
def test_require_same_raises_with_the_numbers_of_each_rank_if_they_differ(
    rows: list[list[int]],
) -> None:
    with pytest.raises(
        ValueError, match=r"ranks differ in shapes: .* rank 0: \[1, 2\], rank 1: \["
    ):
        require_same(VALUES, torch.tensor(rows), "shapes")
