"""Normalizations under vmap with an input in half precision and parameters in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, testing, tree
from tests.campaign import product

NORMS = {
    "batch": lambda: nn.BatchNorm1d(4),
    "batch without parameters": lambda: nn.BatchNorm1d(4, affine=False),
    "batch without statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "layer": lambda: nn.LayerNorm(4),
    "group": lambda: nn.GroupNorm(2, 4),
    "instance": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2), nn.Flatten()),
    "instance with statistics": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)),
        nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
        nn.Flatten(),
    ),
}
# Rounding to bfloat16 and float16 at each layer.
RELATIVE = {"bf16-mixed": 2e-2, "16-mixed": 2e-3, "32-true": 1e-6}


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    out = model(batch)
    return out.float().square().mean()


@pytest.mark.parametrize(
    ("norm", "precision", "compiled"), product([*NORMS], [*RELATIVE], [False, True])
)
def test_vmapped_steps_with_normalization_layers_match_single_steps(
    norm: str, precision: str, compiled: bool
) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), NORMS[norm](), nn.Linear(4, 2))

    init_state, step, evaluate = ftrain.make_steps(
        model, loss_fn, optim.sgd(0.1), precision=precision
    )
    batch = torch.linspace(-1, 1, 24).view(8, 3)
    states = [init_state(seed) for seed in range(2)]
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *states)
    for fn in (step, evaluate):
        mapped = torch.vmap(fn, in_dims=(0, None))
        run = ftrain.compile(mapped, backend="eager") if compiled else mapped
        rows = run(stacked, batch)
        for i, state in enumerate(states):
            row = tree.map(lambda leaf, i=i: leaf[i], rows)
            testing.assert_close_norm(row, fn(state, batch), RELATIVE[precision])
