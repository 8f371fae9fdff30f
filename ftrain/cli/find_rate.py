"""Learning-rate finder for the run that a configuration describes."""

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
        config: of the run; its schedule is left out.
        lowest: the first rate.
        highest: the last.
        steps: from one to the other.
        out: the picture; `None`: `lr_find.png` in the run's directory.
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
