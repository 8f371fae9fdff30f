"""Test the example of a learned schedule: its hypergradient, and that it improves the rates."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

import ftrain
from examples import learned_schedule as example
from ftrain import tree

pytest.importorskip("sklearn")


def test_hypergradient_equals_finite_differences() -> None:
    """In float32, with differences of 1e-2; measured within 1e-4 (relative)."""
    training, held_out, _ = example.digits()
    rates, seed = torch.tensor([0.1, 0.2, 0.05]), torch.tensor(3)
    run = lambda rates: example.loss_after(rates, seed, training, held_out)  # noqa: E731
    _, grads = ftrain.value_and_grad(run)(rates)
    for i in range(3):
        change = torch.zeros(3)
        change[i] = 1e-2
        with torch.no_grad():
            difference = (run(rates + change) - run(rates - change)) / 2e-2
        torch.testing.assert_close(grads[i], difference, rtol=2e-3, atol=0)


def test_vmapped_runs_equal_single_runs() -> None:
    training, held_out, _ = example.digits()
    rates = torch.tensor([0.1, 0.2])
    with torch.no_grad():
        found = example.losses_after(rates, torch.tensor([4, 5]), training, held_out)
        expected = [
            example.loss_after(rates, torch.tensor(seed), training, held_out) for seed in (4, 5)
        ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_two_outer_steps_increase_learning_rates_that_are_too_low(
    tmp_path: pathlib.Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(example, "STEPS", 8)
    path = tmp_path / "schedule.png"
    found = example.main(["--steps", "2", "--seeds", "2", "--picture", str(path)])
    assert list(found) == ["learned", "constant", "cosine"]
    # From 0.03; Adam moves each logarithm by 0.1 at most, and by nearly that at first.
    assert (found["learned"]["rates"] > 0.033).all()
    assert tree.map(lambda x: x.shape, found["cosine"]) == {
        "rates": torch.Size([8]),
        "losses": torch.Size([2]),
    }
    assert str(path) in capsys.readouterr().out
    assert path.read_bytes().startswith(b"\x89PNG")
