"""Hashing while the disk works: sha256 lets go of the interpreter, and so do reads and writes."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

__all__ = ["CHUNK", "Hashing"]

CHUNK = 8 << 20
_WORTH_A_THREAD = 1 << 20


class Hashing:
    """The sha256 of chunks, each hashed while the next is read or the same is written.

    At most one chunk is in flight: when `feed` returns, the memory of every chunk but the last is free.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def __enter__(self) -> Hashing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def feed(self, chunk: memoryview) -> None:
        """Hash this next; its bytes must stay as they are until the following call."""
        self._settle()
        if len(chunk) < _WORTH_A_THREAD:
            self._hash.update(chunk)
            return
        try:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "ftrain-sha256")
            self._pending = self._pool.submit(self._hash.update, chunk)
        except RuntimeError:  # the interpreter is on its way out and starts no more threads
            self._hash.update(chunk)

    def hexdigest(self) -> str:
        """The sha256 of all chunks so far."""
        self._settle()
        return self._hash.hexdigest()

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
