"""Value checks by `torch._check_tensor_all` are kept in the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ftrain import value_and_grad
from ftrain.core.compile import compile
from ftrain.core.errors import TraceError
from tests.campaign import long


def checked(x: torch.Tensor) -> torch.Tensor:
    torch._check_tensor_all_with(ValueError, x > 0, lambda: "x must be positive")
    return (x * 2).sum()


@pytest.mark.parametrize(
    ("fn", "backend"),
    [
        (checked, "eager"),
        (value_and_grad(checked), "eager"),
        pytest.param(checked, "inductor", marks=[pytest.mark.inductor, long]),
        pytest.param(value_and_grad(checked), "inductor", marks=pytest.mark.inductor),
    ],
)
def test_compiled_torch_check_of_tensor_values_runs_at_each_call_and_names_its_line(
    fn: Any, backend: Any
) -> None:
    compiled = compile(fn, backend=backend)
    for _ in range(2):
        torch.testing.assert_close(compiled(torch.ones(3)), fn(torch.ones(3)))
        with pytest.raises(RuntimeError, match=r"check .* failed(?s:.*)_check_tensor_all_with"):
            compiled(torch.tensor([1.0, -1.0, 1.0]))
    assert compiled.n_compiles == 1


def test_compiled_torch_check_of_tensor_values_under_vmap_raises_with_its_line() -> None:
    with pytest.raises(TraceError, match="_check_tensor_all_with"):
        compile(torch.vmap(checked), backend="eager")(torch.ones(2, 3))
