"""A run of one process that nothing stops, with which runs of killed ranks are compared."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from ftrain.config import load_run
from tests import preloaded

__all__ = ["Whole"]


class Whole:
    """The training of a run in one process that is never stopped, with the states of all its steps.

    Args:
        path: the configuration of the run.
        steps: the steps that it trains.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self._folder = path.with_name("whole")
        options = [f"output_dir={self._folder}", f"max_steps={steps}", "callbacks=[]"]
        options += ["checkpoint.every=1", "checkpoint.keep_last=1000000"]
        with open(path.with_name("whole.txt"), "w") as output:
            self.process = preloaded.start(
                *["-m", "ftrain", "train", str(path), *options],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def after(self, step: int) -> Any:
        """Return the state after a step, once it is there; `None` if the training ends before."""
        checkpoint = self._folder / "checkpoints" / f"step-{step:012d}"
        while not checkpoint.exists():
            if self.process.poll() is not None:
                return None
            time.sleep(0.05)
        return load_run(self._folder, checkpoint.name).state
