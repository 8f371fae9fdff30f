"""Log files of a run: their locks, and the warnings that are written to them.

Read next: `_log_locks.py` and `_log_notes.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from ftrain.checkpoint import Store
from ftrain.loop._log_locks import LogLocks
from ftrain.loop._log_notes import LogNotes
from ftrain.loop._one_rank import OneRank

__all__ = ["RunLogs"]


class RunLogs:
    """Log files of a run: locked until the run ends; warnings during the run are written to the logs.

    Args:
        callbacks: the callbacks of the run. A callback may have `exclusive_files`, paths to lock, and
            `write_note`, a function that writes a text.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self._callbacks = callbacks
        self._locks = LogLocks()
        self._notes = LogNotes(callbacks)
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def reserved(self, store: Store | None, ranks: OneRank) -> Iterator[None]:
        """Lock the store and the logs before a run is prepared; unlock them if the `with` block raises.

        Loggers truncate their files at the first event, so this comes before any file is read.

        Raises:
            CheckpointLockedError: another process writes to the store.
            LogLockedError: another run writes to a log.
        """
        locks = store is not None and (ranks.is_main or store.collective)
        acquired = store is not None and locks and store.lock()
        try:
            if ranks.is_main:
                callbacks = self._callbacks
                paths = (x for each in callbacks for x in getattr(each, "exclusive_files", ()))
                # On a file system without locks, a store raises, unless it was created with lock=False.
                self._locks.acquire(paths, warn=store is None)
            with self._notes.collected():
                yield
        except BaseException:
            self._locks.close(unused=True)
            if store is not None and acquired:
                store.discard_unused()
                store.close()
            raise

    def __enter__(self) -> None:
        """Begin to write warnings to the logs, first those from the preparation of the run."""
        self._stack.enter_context(self._notes.collected())
        self._notes.begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._locks.close()
