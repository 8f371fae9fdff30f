"""`apply_updates` keeps the layout of the parameters, and refuses updates that are not floats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftrain.core.optimizer import apply_updates, like

SHAPE = (2, 3, 4)
ORDERS = st.permutations(range(3))


def laid_out(order: list[int]) -> torch.Tensor:
    """Return a tensor of one shape whose axes lie in memory in this order."""
    values = torch.arange(24.0).reshape([SHAPE[axis] for axis in order])
    return values.permute([order.index(axis) for axis in range(3)])


@given(ORDERS, ORDERS, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_new_parameters_have_the_layout_of_the_old_ones(
    old_order: list[int], delta_order: list[int], dtype: torch.dtype
) -> None:
    old, delta = laid_out(old_order), laid_out(delta_order).to(dtype)
    new = apply_updates([old], [delta])[0]
    assert (new.shape, new.stride(), new.dtype) == (old.shape, old.stride(), old.dtype)
    assert bool((new == (old + delta).to(old.dtype)).all())
    assert like(delta, old).stride() == old.stride()
    same = laid_out(old_order)
    assert like(same, old) is same


@pytest.mark.parametrize(
    "delta", [torch.ones(2, dtype=torch.int64), torch.tensor([True, False]), 0.5]
)
def test_updates_that_are_not_floating_point_tensors_are_refused_with_their_path(
    delta: Any,
) -> None:
    old = {"a": torch.ones(2), "w": torch.ones(2)}
    with pytest.raises(TypeError, match=r"`updates` at \['w'\]: expected a floating-point tensor"):
        apply_updates(old, {"a": torch.ones(2), "w": delta})
