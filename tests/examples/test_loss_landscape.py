"""Test the example of curvature over training: its eigenvalues, its plane, and a short run."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

import ftrain
from examples import loss_landscape as example
from ftrain import optim

pytest.importorskip("sklearn")


def test_eigenvalues_are_those_of_the_dense_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hidden layer of two units: 160 parameters."""
    monkeypatch.setattr(example, "net", lambda: small)
    small = torch.nn.Sequential(torch.nn.Linear(64, 2), torch.nn.Tanh(), torch.nn.Linear(2, 10))
    found = example.watch(2, every=2, kept=2, points=3)
    batch = example.digits()
    steps = ftrain.make_steps(small, example.loss_fn, optim.sgd(example.RATE))
    state = steps.init_state(0)
    loss_of = steps.train_step.gradients.closures(state, batch)["value_fn"]
    shapes = {name: p.shape for name, p in state.params.items()}

    def of_flat(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        named = zip(shapes, parts, strict=True)
        value: torch.Tensor = loss_of({name: part.view(shapes[name]) for name, part in named})
        return value

    flat = torch.cat([p.flatten() for p in state.params.values()])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(of_flat, flat))
    expected = values.flip(0)[:2].double()
    # 20 Lanczos steps; measured 1e-6.
    torch.testing.assert_close(
        torch.tensor(found.eigenvalues[0]).double(), expected, rtol=1e-3, atol=0
    )


def test_short_run_plots_the_curvature_and_a_plane_of_the_loss(
    tmp_path: pathlib.Path, capsys: Any
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "landscape.png"
    found = example.main(["--steps", "21", "--picture", str(path)])
    assert found.measured == [0, 20, 21]
    assert len(found.losses) == 21
    assert found.losses[-1] < 0.5 * found.losses[0]  # measured 0.18 and 0.63
    assert all(first >= second for first, second in found.eigenvalues)
    assert found.path[-1].norm() < 1e-6  # the final parameters are the origin of the plane
    middle = len(found.plane) // 2
    torch.testing.assert_close(
        float(found.plane[middle, middle]), found.losses[-1], rtol=0.1, atol=0
    )
    assert str(path) in capsys.readouterr().out
    assert path.read_bytes().startswith(b"\x89PNG")
