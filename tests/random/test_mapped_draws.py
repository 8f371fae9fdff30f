"""Test the error for a draw that `torch.vmap` refuses."""

from __future__ import annotations

import pytest
import torch

from ftrain.core.random._refusal import mapped_draw


def test_draw_that_vmap_refuses_is_named_by_its_line() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.vmap(lambda x: x + torch.rand(()))(torch.ones(3))
    error = mapped_draw(caught.value)
    assert error is not None
    assert "torch.vmap" in str(error)
    assert "torch.rand(())" in str(error)
    assert mapped_draw(RuntimeError("another error")) is None
