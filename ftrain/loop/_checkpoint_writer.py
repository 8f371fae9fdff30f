"""Writer of the checkpoints of a run: at most one per step; a write error does not end the run."""

from __future__ import annotations

from collections.abc import Mapping

from ftrain.checkpoint import CheckpointError, Store
from ftrain.loop.state import LoopState

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """Writer of the checkpoints of a run.

    Attributes:
        path: path of the last checkpoint.
        error: the exception of the last attempt; `None` if it succeeded.
    """

    def __init__(self, store: Store | None, state: LoopState, resumed: bool, *, owns: bool = False):
        """Initialize the writer.

        Args:
            store: the store; `None`: no checkpoints.
            state: the state in which the run begins.
            resumed: True if that state was read from a checkpoint.
            owns: True if the store was created for this run, and is closed at its end.
        """
        self._store, self._owns = store, owns
        unfinished = bool(state.pending) or state.boundary_unfinished
        self._saved = state.progress.step if resumed and not unfinished else None
        # A checkpoint with unfinished work of its step is replaced once that work is complete.
        self._replaces = state.progress.step if resumed and unfinished else None
        self.path: str | None = None
        self.error: Exception | None = None

    def is_due(self, step: int) -> bool:
        """Return True if the run has a checkpoint store and this step is not saved yet."""
        return self._store is not None and self._saved != step

    def save(self, state: LoopState, metrics: Mapping[str, float]) -> bool:
        """Write a checkpoint; if that fails, keep the existing checkpoints and return False."""
        assert self._store is not None
        step = state.progress.step
        try:
            path = self._store.save(
                state.train,
                step=step,
                metadata=state.metadata(),
                metrics=metrics,
                replace=step == self._replaces,
            )
        except (CheckpointError, OSError) as error:
            self.error = error
            return False
        self.path, self.error, self._saved, self._replaces = str(path), None, step, None
        return True

    def finish(self) -> None:
        """Wait for a background save; raise the error of the last attempt to save, if it failed."""
        if self._store is not None:
            self._store.wait()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Close the checkpoint store if it was created for this run."""
        if self._store is not None and self._owns:
            self._store.close()
