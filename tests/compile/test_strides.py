"""Operators whose results have other strides than torch's fake kernels say."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ftrain import value_and_grad
from ftrain.core.compile import compile
from tests.compile.cases import same_bytes


def softplus_of_a_view(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Softplus whose gradient has the strides of its transposed argument, unlike in the trace."""
    return (F.softplus(x.view(2, 3, 4)).transpose(1, 2) * w).sum()


def test_a_view_of_a_result_with_other_strides_than_in_the_trace_is_computed():
    x = torch.linspace(-2, 2, 24).view(6, 4)
    w = torch.linspace(0, 1, 24).view(2, 4, 3)
    step = value_and_grad(softplus_of_a_view)
    assert same_bytes(compile(step, backend="eager")(x, w), step(x, w))
