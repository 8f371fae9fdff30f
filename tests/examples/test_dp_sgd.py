"""Test the DP-SGD example: its loss over a padded batch, its epsilons, and a short run."""

from __future__ import annotations

import logging
import math
import pathlib
from typing import Any

import pytest
import torch

import ftrain
from examples import dp_sgd

pytest.importorskip("sklearn")


def test_masked_rows_add_nothing_to_the_gradient() -> None:
    training, _ = dp_sgd.digits()
    batch = {name: x[:8] for name, x in training.items()} | {"mask": torch.arange(8) < 5}
    steps = ftrain.make_steps(dp_sgd.net, dp_sgd.loss_fn, ftrain.optim.sgd(1.0))
    gradients = ftrain.gradients(dp_sgd.net, dp_sgd.loss_fn)
    state = steps.init_state(0)
    part = {name: x[:5] for name, x in batch.items()}
    found, expected = gradients(state, batch).grads, gradients(state, part).grads
    torch.testing.assert_close(found, expected)


def test_epsilon_grows_with_steps_and_falls_with_noise() -> None:
    pytest.importorskip("dp_accounting")
    values = [dp_sgd.epsilon(noise, steps, "rdp") for noise, steps in ((8, 10), (8, 20), (4, 20))]
    assert 0 < values[0] < values[1] < values[2] < dp_sgd.epsilon(0.0, 20) == math.inf


def test_short_run_plots_accuracy_over_epsilon(
    tmp_path: pathlib.Path, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("dp_accounting")
    pytest.importorskip("matplotlib")
    caplog.set_level(logging.ERROR)  # dp-accounting warns of orders that it leaves out
    path = tmp_path / "dp.png"
    curves = dp_sgd.main(["--steps", "10", "--accountant", "rdp", "--picture", str(path)])
    assert list(curves) == list(dp_sgd.NOISES)
    assert [step for step, _ in curves[2.0]] == [10]
    # Measured: 44, 60, 69 and 73 %.
    assert curves[8.0][-1][1] < curves[2.0][-1][1]
    assert curves[2.0][-1][1] > 0.55
    said = capsys.readouterr().out.splitlines()
    assert said[3] == f"noise 0: epsilon inf, accuracy {curves[0.0][-1][1]:.1%}"
    assert path.read_bytes().startswith(b"\x89PNG")
