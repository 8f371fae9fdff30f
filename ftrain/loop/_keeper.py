"""The run's checkpoints: written once a step, and never the reason that a run ends."""

from __future__ import annotations

from collections.abc import Mapping

from ftrain.checkpoint import CheckpointError, Store
from ftrain.loop.state import LoopState

__all__ = ["Keeper"]


class Keeper:
    """A store, and what was saved to it.

    Attributes:
        path: of the last checkpoint.
        error: what the last attempt ended in.
    """

    def __init__(self, store: Store | None, loop: LoopState, resumed: bool) -> None:
        self._store = store
        amidst = bool(loop.todo) or loop.due
        self._saved = loop.progress.step if resumed and not amidst else None
        # What a run goes on from in the midst of a step's work is replaced when that is done.
        self._replaces = loop.progress.step if resumed and amidst else None
        self.path: str | None = None
        self.error: Exception | None = None

    def due(self, step: int) -> bool:
        """Whether there is a store, and this step is not in it."""
        return self._store is not None and self._saved != step

    def save(self, loop: LoopState, metrics: Mapping[str, float]) -> bool:
        """Write a checkpoint; whether that worked. What was there before stays if it did not."""
        assert self._store is not None
        step = loop.progress.step
        try:
            path = self._store.save(
                loop.train,
                step=step,
                metadata=loop.metadata(),
                metrics=metrics,
                replace=step == self._replaces,
            )
        except (CheckpointError, OSError) as error:
            self.error = error
            return False
        self.path, self.error, self._saved, self._replaces = str(path), None, step, None
        return True

    def finish(self) -> None:
        """Wait for a save in the background; raises what it, or the last attempt, ended in."""
        if self._store is not None:
            self._store.wait()
        if self.error is not None:
            raise self.error
