"""Mixtures of experts: `grouped_mm` in every dtype that it accepts in eager mode."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core.compile import compile
from tests.compile.cases import same_bytes

ENDS = torch.tensor([1, 4, 6], dtype=torch.int32)


class Experts(nn.Module):
    """Mixture of experts that sends each token to the expert with the highest score."""

    def __init__(self, width: int = 8, n: int = 3) -> None:
        super().__init__()
        self.route = nn.Linear(width, n)
        self.up = nn.Parameter(torch.randn(n, width, width) * 0.1)
        self.down = nn.Parameter(torch.randn(n, width, width) * 0.1)

    def forward(self, x):
        weight, expert = self.route(x).softmax(-1).max(-1)
        order = expert.argsort()
        ends = F.one_hot(expert, self.up.shape[0]).sum(0).cumsum(0).to(torch.int32)
        h = F.relu(F.grouped_mm(x[order], self.up, offs=ends))
        y = F.grouped_mm(h, self.down.transpose(1, 2), offs=ends)
        return weight[:, None] * y[order.argsort()]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_compiled_mixture_of_experts_step_equals_eager(precision):
    init_state, train_step, _ = ftrain.make_steps(
        Experts, lambda m, x: m(x).float().square().mean(), optim.sgd(0.1), precision=precision
    )
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    state = init_state(0)
    assert same_bytes(compile(train_step, backend="eager")(state, x), train_step(state, x))


@pytest.mark.inductor
def test_inductor_compiled_float32_grouped_mm_matches_eager():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 8, generator=g), torch.randn(3, 8, 8, generator=g)

    def fn(a, b):
        return F.grouped_mm(a, b, offs=ENDS).relu()

    torch.testing.assert_close(compile(fn)(a, b), fn(a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inner", "columns"), [(16, 16), (8, 3)])
def test_traced_grouped_mm_has_the_shapes_and_strides_of_the_kernel(dtype, inner, columns):
    """For example, the kernel pads a row of 3 columns to 16 bytes."""
    g = torch.Generator().manual_seed(0)

    def some(*size):
        return torch.randn(size, generator=g).to(dtype)

    forms = [(some(6, inner), some(3, columns, inner).transpose(1, 2), ENDS)]
    if columns % 8 == 0:
        forms.append((some(3, 8, inner), some(3, inner, columns), None))
        forms.append((some(inner, 8), some(8, columns), ENDS + 2))
        forms.append((some(3, 8, inner), some(inner, columns), ENDS + columns - 6))
    for a, b, ends in forms:

        def fn(a, b, ends=ends):
            y = F.grouped_mm(a, b, offs=ends)
            return y, y.stride()

        (found, strides), (expected, _) = compile(fn, backend="eager")(a, b), fn(a, b)
        assert strides == expected.stride()
        assert found.shape == expected.shape
        assert same_bytes(found, expected)
