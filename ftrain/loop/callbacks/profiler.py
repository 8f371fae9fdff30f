"""Trace of a few steps, with the time of each operator."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import torch.profiler

from ftrain.core import _file_output
from ftrain.loop.callback import Action
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import BatchBegin, BatchEnd, Event, TrainEnd

__all__ = ["Profiler"]


class Profiler:
    """Trace a few steps once with `torch.profiler`, into `trace-step-10.json` and a table.

    Open the trace in https://ui.perfetto.dev or chrome://tracing. The table, `trace-step-10.txt`,
    lists the operators that took the most time.

    Args:
        folder: the output directory; created if missing.
        start: steps before the first traced one, to exclude compilation and warm-up.
        steps: number of traced steps.
        memory: record allocations too.

    Raises:
        ValueError: a count is out of range.

    Example:
        >>> import tempfile, torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1))
        >>> folder = tempfile.mkdtemp()
        >>> trainer = loop.Trainer(steps, [Profiler(folder, start=2, steps=1)], compile=False)
        >>> result = trainer.fit(steps.init_state(0), [torch.ones(4, 3)], max_steps=4)
        >>> sorted(path.name for path in pathlib.Path(folder).iterdir())
        ['trace-step-3.json', 'trace-step-3.txt']
    """

    listens = (BatchBegin, BatchEnd, TrainEnd)
    on_error = "warn"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        start: int = 10,
        steps: int = 5,
        memory: bool = False,
    ) -> None:
        if start < 0 or steps < 1:
            raise ValueError(
                f"start, steps: expected start >= 0 and steps >= 1, got {start!r} and {steps!r}. "
                "Write start=10, steps=5."
            )
        self.folder, self.start, self.steps, self.memory = (
            pathlib.Path(folder),
            start,
            steps,
            memory,
        )
        self._running: Any = None

    def init(self) -> None:
        """Return `None` as the state of this callback: traces are not saved in checkpoints."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Start the trace before the first step to trace; end and write it after the last one."""
        step = event.progress.step
        if isinstance(event, BatchBegin):
            if step == self.start and self._running is None and is_main():
                self._running = torch.profiler.profile(
                    profile_memory=self.memory, record_shapes=self.memory
                )
                self._running.start()
        elif self._running is not None and (
            isinstance(event, TrainEnd) or step >= self.start + self.steps
        ):
            self._write()
        return None, ()

    def _write(self) -> None:
        found, self._running = self._running, None
        found.stop()  # waits for the device
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"trace-step-{self.start + 1}"
        with _file_output.draft(self.folder / f"{name}.json") as draft:
            found.export_chrome_trace(str(draft))
        operators = found.key_averages()
        on_device = any(each.self_device_time_total for each in operators)
        by = "self_device_time_total" if on_device else "self_cpu_time_total"
        table = operators.table(sort_by=by, row_limit=50)
        _file_output.replace(self.folder / f"{name}.txt", table)
