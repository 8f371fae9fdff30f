"""What `train` and `resume` share: the run, and what is said of it."""

from __future__ import annotations

import dataclasses
import sys

from ftrain.config.run import train
from ftrain.config.schema import Config

__all__ = ["report"]


def report(config: Config, *, resume: bool = False, overwrite: bool = False) -> int:
    """Train, say how it ended and what can be done next; the exit code."""
    result = train(config, resume=resume, overwrite=overwrite)
    folder = config.folder
    if config.fast_dev_run:
        result = dataclasses.replace(result, checkpoint=None)
    print(result)
    if config.fast_dev_run:
        print("everything ran; nothing was kept")
    elif result.status == "interrupted":
        print(f"go on with: ftrain resume {folder}", file=sys.stderr)
    else:
        print(f"run: {folder}")
    return result.exit_code
