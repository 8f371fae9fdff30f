"""Test the MAML example: its tasks, its meta-gradient, and that it adapts faster than without it."""

from __future__ import annotations

import pathlib

import pytest
import torch

import ftrain
from examples import maml_sines
from ftrain import random
from ftrain.testing import assert_same_bits


def test_points_of_a_task_lie_on_one_sine() -> None:
    tasks = maml_sines.sines(random.key(0), 3)
    assert tasks["seen"]["x"].shape == (3, maml_sines.POINTS, 1)
    for i in range(3):
        x, y = (torch.cat([tasks[part][name][i] for part in ("seen", "new")]) for name in "xy")
        waves = torch.cat([x.sin(), x.cos()], 1)
        error = y - waves @ torch.linalg.lstsq(waves, y).solution
        assert error.abs().max() < 1e-4
    assert_same_bits(tasks, maml_sines.sines(random.key(0), 3))


def test_meta_gradient_equals_that_of_a_step_written_by_hand() -> None:
    tasks = maml_sines.sines(random.key(1), 2)
    state = maml_sines.INNER.init_state(0)
    net = maml_sines.net()

    def error(params: dict[str, torch.Tensor], batch: maml_sines.Batch) -> torch.Tensor:
        out = torch.func.functional_call(net, params, (batch["x"],))
        return (out - batch["y"]).square().mean()

    def by_hand(params: dict[str, torch.Tensor]) -> torch.Tensor:
        found = []
        for i in range(2):
            seen, new = ({k: x[i] for k, x in tasks[part].items()} for part in ("seen", "new"))
            grads = torch.func.grad(error)(params, seen)
            rate = maml_sines.INNER_RATE
            found.append(error({k: p - rate * grads[k] for k, p in params.items()}, new))
        return torch.stack(found).mean()

    expected = torch.func.grad(by_hand)(state.params)
    apply = ftrain.bind(maml_sines.net)
    found = ftrain.gradients(apply, maml_sines.meta_loss)(state, tasks).grads
    for name, grad in expected.items():
        # Batched products sum in another order.
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-5)


def test_meta_training_adapts_faster_than_pooled_training(tmp_path: pathlib.Path) -> None:
    """After 40 steps each; measured 0.87 and 0.95 of the error before the first step."""
    curves = {}
    for loss_fn in (maml_sines.meta_loss, maml_sines.pooled_loss):
        params = maml_sines.train(loss_fn, 40, compiled=False)
        curves[loss_fn.__name__] = maml_sines.curve(params, steps=2, n=20)
    meta, pooled = (each[1] / each[0] for each in curves.values())
    assert meta < pooled
    pytest.importorskip("matplotlib")
    path = tmp_path / "curves.png"
    maml_sines.picture(curves, path)
    assert path.stat().st_size > 1000
