"""Generated code under deterministic algorithms has no atomic adds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, tree


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 64)
        self.out = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(x).mean(1))


def loss_fn(model: Any, batch: Any) -> Any:
    return F.cross_entropy(model(batch["x"]), batch["y"])


@pytest.mark.parametrize("deterministic", [True, False])
def test_embedding_backward_has_no_atomic_adds_under_deterministic_algorithms(
    monkeypatch, deterministic
):
    from torch._inductor.utils import run_and_get_code

    steps = ftrain.make_steps(Embedded, loss_fn, optim.sgd(0.1))
    state = tree.map(lambda leaf: leaf.cuda(), steps.init_state(0))
    batch = {
        "x": torch.zeros(16, 5, dtype=torch.long, device="cuda"),
        "y": torch.zeros(16, dtype=torch.long, device="cuda"),
    }
    step = ftrain.compile(steps.train_step, donate=True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        _, code = run_and_get_code(step, state, batch)
    finally:
        torch.use_deterministic_algorithms(before)
    assert code
    assert any("tl.atomic_add" in each for each in code) != deterministic
    assert any("'deterministic': True" in each for each in code) == deterministic
