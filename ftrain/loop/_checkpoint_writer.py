"""Writer of the checkpoints of a run: at most one per step; a write error does not end the run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from ftrain.checkpoint import CheckpointError, CheckpointWriteError, Store
from ftrain.loop._one_rank import ALONE, OneRank
from ftrain.loop.state import LoopState

__all__ = ["CheckpointWriter"]


class _Written(NamedTuple):
    """Steps of the checkpoints written so far.

    Attributes:
        path: path of the last checkpoint of this process.
        last: step of the newest checkpoint of the run; `None`: there is none.
        complete: step of a checkpoint that needs no further save.
        replaces: step of a checkpoint with unfinished work, replaced once that work is complete.
    """

    path: str | None
    last: int | None
    complete: int | None
    replaces: int | None


class CheckpointWriter:
    """Writer of the checkpoints of a run.

    Attributes:
        error: the exception of the last attempt to save; `None` if that attempt succeeded.
    """

    def __init__(
        self,
        store: Store | None,
        state: LoopState,
        resumed: bool,
        *,
        owns: bool = False,
        ranks: OneRank = ALONE,
    ):
        """Initialize the writer.

        Args:
            store: the store; `None`: no checkpoints.
            state: the state in which the run begins.
            resumed: True if that state was read from a checkpoint.
            owns: True if the store was created for this run, and is closed at its end.
            ranks: the ranks of the run, of which rank 0 writes, or all if the store is collective.
        """
        self._store, self._owns, self._ranks = store, owns, ranks
        self._active = store is not None and (ranks.is_main or store.collective)
        step = state.progress.step if resumed else None
        unfinished = bool(state.pending) or state.boundary_unfinished
        self._written = _Written(
            None, step, None if unfinished else step, step if unfinished else None
        )
        # The checkpoints before an asynchronous save that is not durable yet.
        self._before = self._written
        # The step of the last attempt to save, and its metrics.
        self._metrics: tuple[int, Mapping[str, float]] = (-1, {})
        self._notices: list[str] = []
        self._said: object = None  # kind of the last reported error
        self.error: Exception | None = None

    @property
    def path(self) -> str | None:
        """Path of the last checkpoint that this process wrote; `None` if it wrote none."""
        return self._written.path

    @property
    def last(self) -> int | None:
        """Step of the newest checkpoint of the run; `None` if there is none."""
        return self._written.last

    def is_due(self, step: int) -> bool:
        """Return True if the run has a checkpoint store and this step is not saved yet."""
        return self._active and self._written.complete != step

    def after_failure(self, writes: bool) -> None:
        """Set whether this rank writes the last checkpoint of a failed run."""
        self._active = self._store is not None and writes

    def save(self, state: LoopState, metrics: Mapping[str, float]) -> bool:
        """Write a checkpoint; if that fails, keep the existing checkpoints and return False."""
        assert self._store is not None
        self._settle()
        step = state.progress.step
        # If a save failed, a later checkpoint of the same step is ranked by the metrics of both.
        earlier = self._metrics[1] if self._metrics[0] == step else {}
        self._metrics = step, {**earlier, **metrics}
        metadata = state.metadata()
        if self._store.collective:
            # The states of callbacks that write files differ from those of rank 0.
            metadata = self._ranks.agree(metadata, "the metadata of a checkpoint")
        try:
            path = self._store.save(
                state.train,
                step=step,
                metadata=metadata,
                metrics=self._metrics[1],
                replace=step == self._written.replaces,
            )
        except (CheckpointError, OSError) as error:
            self._fail(step, error)
            return False
        self.error, self._before = None, self._written
        self._written = _Written(str(path), step, step, None)
        return True

    def notices(self) -> list[str]:
        """Return the messages about failed saves since the last call, once for each kind of error."""
        found, self._notices = self._notices, []
        return found

    def finish(self) -> None:
        """Wait for a background save; raise the error of the last attempt to save, if it failed."""
        self._settle()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Close the checkpoint store if it was created for this run."""
        if self._store is not None and self._owns:
            self._store.close()

    def _settle(self) -> None:
        """Wait until the last checkpoint is on disk; if its save failed, record the error."""
        if self._store is None or self._before is self._written:
            return
        step = self._written.last
        try:
            self._store.wait()
        except (CheckpointError, OSError) as error:
            self._written = self._before
            assert step is not None
            self._fail(step, error)
        else:
            self._before, self._said = self._written, None

    def _fail(self, step: int, error: Exception) -> None:
        self.error = error
        kind = type(error), getattr(error, "errno", None)
        if kind == self._said:
            return
        self._said, reason = kind, str(error)
        if isinstance(error, CheckpointWriteError) and error.errno is not None:
            reason = f"{os.strerror(error.errno)}. {error.remedy}"
        saved = (
            "no checkpoint exists yet"
            if self.last is None
            else f"the newest checkpoint is that of step {self.last}"
        )
        self._notices.append(
            f"the checkpoint of step {step} could not be written ({saved}): {reason} The run continues, "
            "and reports this error again only at its end"
        )
