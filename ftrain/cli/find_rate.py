"""Learning-rate finder for a run that is described by a configuration."""

from __future__ import annotations

import pathlib

import torch

from ftrain.config._environment import environment
from ftrain.config.build import build
from ftrain.config.schema import Config
from ftrain.core import tree
from ftrain.loop import finders

__all__ = ["find_rate"]


def find_rate(
    config: Config, lowest: float, highest: float, steps: int, out: pathlib.Path | None
) -> tuple[finders.RateSweep, pathlib.Path]:
    """Train briefly with an increasing learning rate; return the losses, and the path of their plot.

    Args:
        config: the configuration of the run, whose schedule is ignored.
        lowest: the first learning rate.
        highest: the last learning rate.
        steps: the number of steps from the first to the last rate.
        out: the path of the plot; `None`: `lr_find.png` in the run's directory.
    """
    out = config.folder / "lr_find.png" if out is None else out
    with environment(config):
        parts = build(config)
        start = parts.steps_at(torch.tensor(lowest, dtype=torch.float64)).init_state(config.seed)
        found = finders.learning_rate(
            parts.steps_at,
            tree.map(lambda leaf: leaf.to(parts.device), start),
            parts.train,
            lowest=lowest,
            highest=highest,
            n_steps=steps,
            compile=config.compile,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    found.plot(out, title=f"{config.model.name}, {config.optimizer.name}")
    return found, out
