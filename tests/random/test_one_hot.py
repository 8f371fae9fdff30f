"""Test that `one_hot` of a keyed function equals torch's."""

from __future__ import annotations

import pytest
import torch

from ftrain.core.random import _keyed_transforms


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (3, 3), (2, 1, 3)])
def test_keyed_one_hot_appends_the_classes_as_the_last_dimension(shape: tuple[int, ...]) -> None:
    indices = torch.arange(torch.Size(shape).numel()).reshape(shape) % 3
    expected = torch.nn.functional.one_hot(indices, 3)
    torch.testing.assert_close(_keyed_transforms.one_hot(indices, 3), expected, rtol=0, atol=0)
