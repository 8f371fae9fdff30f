"""Machine code keeps the values of carries that a loop returns unchanged (`keep_carries`)."""

from __future__ import annotations

import pytest
import torch

import ftrain
from ftrain.testing import assert_close_norm


def program(x, rows):
    """Carry a total through a loop that adds zero to it, and read it after other sums."""

    def body(carry, row):
        total, summed = carry
        return (total + torch.zeros_like(total), summed + row), ()

    start = (x.square().sum(), torch.zeros_like(rows[0]))
    (total, summed), _ = ftrain.scan(body, start, rows)
    norm = torch.stack([summed.abs().sum(), (total * 3).abs()]).square().sum().sqrt()
    return total / norm.clamp(min=1e-3), summed, norm, total


@pytest.mark.inductor
def test_inductor_compiled_loop_keeps_the_value_of_a_carry_to_which_it_adds_zero():
    x, rows = torch.arange(4.0), torch.ones(3, 4)
    # Torch 2.13 alone: a total of 12 instead of 14.
    assert_close_norm(ftrain.compile(program)(x, rows), program(x, rows), 1e-6)
