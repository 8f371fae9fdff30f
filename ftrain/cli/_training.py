"""What `train` and `resume` share: the run, and what is said of it."""

from __future__ import annotations

import dataclasses
import sys

from ftrain.cli._runs import outcome
from ftrain.config.run import train
from ftrain.config.schema import Config

__all__ = ["report"]


def report(config: Config, *, resume: bool = False, overwrite: bool = False) -> int:
    """Train, say how it ended and what can be done next; the exit code."""
    folder = config.folder
    before = outcome(folder) if resume else {}
    result = train(config, resume=resume, overwrite=overwrite)
    if config.fast_dev_run:
        result = dataclasses.replace(result, checkpoint=None)
    print(result)
    if result.status == "completed" and (before.get("status"), before.get("step")) == (
        "completed",
        result.step,
    ):
        longer = (
            f"epochs={2 * config.epochs}"
            if config.epochs
            else f"max_steps={2 * (result.step or 1)}"
        )
        print(f"nothing is left to do; more: ftrain resume {folder} {longer}")
    if config.fast_dev_run:
        print("everything ran; nothing was kept")
    elif result.status == "interrupted":
        print(f"go on with: ftrain resume {folder}", file=sys.stderr)
    else:
        curves = folder / "curves.png"
        print(f"run: {folder}", *[f"curves: {curves}"] * curves.exists(), sep="\n")
    return result.exit_code
