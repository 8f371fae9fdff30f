"""Interrupt a run and resume it from Python, with the same result as without interruption.

    python examples/resume.py

On the command line it is Ctrl-C, then `ftrain resume runs/NAME`.
"""

from __future__ import annotations

import pathlib
import tempfile

import torch
from torch import nn

import ftrain
from ftrain import data, optim, tree
from ftrain.loop import Trainer

x = torch.linspace(-1, 1, 64)[:, None]
LOADER = data.Loader({"x": x, "y": x.square()}, batch_size=16, seed=0)


def loss_fn(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean squared error."""
    error: torch.Tensor = model(batch["x"]) - batch["y"]
    return error.square().mean()


def model() -> nn.Module:
    """Return a network with dropout, whose masks must be the same in a resumed run."""
    return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))


def digest(folder: pathlib.Path, stops: tuple[int, ...]) -> str:
    """Train for 20 steps, stopping and resuming in new trainers; return a digest of the final state."""
    steps = ftrain.make_steps(model, loss_fn, optim.adam(0.01))
    for stop in (*stops, 20):
        trainer = Trainer(steps, compile=False, store=folder)
        result = trainer.fit(steps.init_state(0), LOADER, max_steps=stop, resume="auto")
        print(f"{folder.name}: {result.status} at step {result.step}")
    return tree.digest(result.state)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        runs = pathlib.Path(folder)
        whole, pieces = digest(runs / "whole", ()), digest(runs / "pieces", (3, 7, 8))
        print("the same bits:", whole == pieces)
