"""Checkpoints of a run: at most one per step, without failing the run on a write error."""

from __future__ import annotations

from collections.abc import Mapping

from ftrain.checkpoint import CheckpointError, Store
from ftrain.loop.state import LoopState

__all__ = ["Keeper"]


class Keeper:
    """Writer of the checkpoints of a run.

    Attributes:
        path: path of the last checkpoint.
        error: the exception of the last attempt; `None` if it succeeded.
    """

    def __init__(self, store: Store | None, loop: LoopState, resumed: bool) -> None:
        self._store = store
        amidst = bool(loop.todo) or loop.due
        self._saved = loop.progress.step if resumed and not amidst else None
        # A checkpoint with unfinished work of its step is replaced once that work is complete.
        self._replaces = loop.progress.step if resumed and amidst else None
        self.path: str | None = None
        self.error: Exception | None = None

    def due(self, step: int) -> bool:
        """Return True if there is a store and this step is not saved yet."""
        return self._store is not None and self._saved != step

    def save(self, loop: LoopState, metrics: Mapping[str, float]) -> bool:
        """Write a checkpoint; return False, and keep the existing checkpoints, if that fails."""
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
        """Wait for a background save; raise the error of it or of the last attempt."""
        if self._store is not None:
            self._store.wait()
        if self.error is not None:
            raise self.error
