"""Default progress bar of `Trainer.fit`, in a terminal or a notebook.

It receives the events of the run but is not one of its callbacks, so that checkpoints do not depend on
the terminal or notebook in which a run was started.

Read next: `callbacks/progress.py`, the bar.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ftrain.loop.callback import CallbackWarning
from ftrain.loop.callbacks._notebook import in_notebook
from ftrain.loop.callbacks.progress import ProgressBar
from ftrain.loop.events import Event

__all__ = ["DefaultProgress", "default_progress"]


def default_progress(callbacks: Sequence[Any]) -> DefaultProgress | None:
    """Return the default progress bar; `None` without a terminal, or if the callbacks include a bar.

    A notebook counts as a terminal.
    """
    if any(isinstance(each, ProgressBar) for each in callbacks):
        return None
    shown = in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    return DefaultProgress(ProgressBar()) if shown else None


class DefaultProgress:
    """Progress bar that receives the events of a run without being one of its callbacks.

    Attributes:
        kinds: the kinds of event that the bar shows.
    """

    def __init__(self, bar: ProgressBar) -> None:
        self.kinds: tuple[type[Event], ...] = bar.listens
        self._show: Callable[[None, Event], object] | None = bar

    def show(self, event: Event) -> None:
        """Update the progress bar for an event; after an error, warn once and stop updating."""
        if self._show is None:
            return
        try:
            self._show(None, event)
        except Exception as error:
            self._show = None
            warnings.warn(
                f"the progress bar raised {type(error).__name__}: {error}; the run continues without "
                "it. Write Trainer(..., progress=False) to switch it off.",
                CallbackWarning,
                stacklevel=3,
            )
