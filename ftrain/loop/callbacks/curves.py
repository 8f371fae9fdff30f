"""Curves of a run as an image that is redrawn during the run."""

from __future__ import annotations

import os
import pathlib
import time
import warnings

from ftrain.loop import plots
from ftrain.loop.callback import Action, CallbackWarning
from ftrain.loop.callbacks._optional import need
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import EpochBegin, Event, TrainEnd, WindowEnd

__all__ = ["Curves"]

_SHARE = 0.02  # maximum fraction of a run's time that is spent on drawing


class Curves:
    """Draw the curves of the log into an image, periodically and at the end of the run.

    The curves are read from the file of `JSONLLogger`, which may come before or after this callback; the
    image of a resumed run covers the whole run. Drawing takes up to a second, so the interval between
    two images is extended to keep drawing below 2 % of the run's time.

    Args:
        path: path of the image, `.png`, `.svg` or `.pdf`.
        log: the file of `JSONLLogger`; default: `metrics.jsonl` beside the image.
        every: minimum seconds between two images.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> import tempfile, torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1))
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> logs = [loop.callbacks.JSONLLogger(folder / "metrics.jsonl"), Curves(folder / "curves.png")]
        >>> trainer = loop.Trainer(steps, logs, compile=False, log_every=1)
        >>> result = trainer.fit(steps.init_state(0), [torch.ones(4, 3)], max_steps=2)
        >>> sorted(path.name for path in folder.iterdir())
        ['curves.png', 'metrics.jsonl']
    """

    # When these events are emitted, the file holds all earlier rows, for any order of callbacks.
    listens = (EpochBegin, WindowEnd, TrainEnd)
    on_error = "warn"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        log: str | os.PathLike[str] | None = None,
        every: float = 30.0,
    ) -> None:
        need("matplotlib", "Curves", "matplotlib")
        self.path = pathlib.Path(path)
        self.log = self.path.with_name("metrics.jsonl") if log is None else pathlib.Path(log)
        self.every = every
        self._due = every  # seconds since `fit` was called; not part of the saved state

    def init(self) -> None:
        """Return `None` as the state of this callback: the log file holds the values of the curves."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Draw the image if a new one is due at this event."""
        ends = isinstance(event, TrainEnd)
        there = self.log.exists() and self.log.stat().st_size
        if (ends or event.seconds >= self._due) and there and is_main():
            began = time.perf_counter()
            plots.curves(self.log, self.path)
            took = time.perf_counter() - began
            self._due = event.seconds + max(self.every, took / _SHARE)
        if ends:
            self._due = self.every  # for the next call of `fit`
            # If the run ended before its first row, the log exists and is empty.
            if not self.log.exists() and event.progress.step and is_main():
                warnings.warn(
                    f"Curves: expected a log of JSONLLogger at {self.log}, got no file. Add "
                    f"JSONLLogger({os.fspath(self.log)!r}) to the callbacks.",
                    CallbackWarning,
                    stacklevel=2,
                )
        return None, ()
