"""SHA-256 and `fsync` in threads, while the next bytes are read or written.

Both functions release the interpreter lock. Read next: `save.py`, which writes files and stores their
hashes; `_read.py`, which compares the hashes.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

__all__ = ["CHUNK", "EarlySync", "Hashing"]

CHUNK = 8 << 20
_WORTH_A_THREAD = 1 << 20
_BETWEEN_SYNCS = 128 << 20


class Hashing:
    """SHA-256 of consecutive chunks, each hashed while the next chunk is read or written.

    Disks stall now and then: with up to 16 chunks waiting to be hashed, a save takes 0.75 of the time
    that it takes with one chunk (median of 25 pairs, on a busy machine).

    Args:
        ahead: the number of chunks that may wait to be hashed. When `feed` returns, the memory of all
            but the last `ahead` is free.
    """

    def __init__(self, ahead: int = 1) -> None:
        self._ahead = ahead
        self._hash = hashlib.sha256()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: collections.deque[Future[None]] = collections.deque()

    def __enter__(self) -> Hashing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def feed(self, chunk: memoryview) -> None:
        """Hash a chunk in a thread; its bytes must not change until `ahead` more chunks are fed."""
        self._settle(self._ahead - 1)
        if not self._pending and len(chunk) < _WORTH_A_THREAD:
            self._hash.update(chunk)
            return
        try:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "ftrain-sha256")
            self._pending.append(self._pool.submit(self._hash.update, chunk))
        except RuntimeError:  # the interpreter is shutting down and starts no more threads
            self._settle(0)
            self._hash.update(chunk)

    def hexdigest(self) -> str:
        """Return the SHA-256 of all chunks so far, as hexadecimal digits."""
        self._settle(0)
        return self._hash.hexdigest()

    def _settle(self, left: int) -> None:
        while len(self._pending) > left:
            self._pending.popleft().result()


class EarlySync:
    """Calls of `fsync` in the background while a file is written, so that the last one is short.

    Saving 1 GB is 1.14 times as fast as with a single `fsync` at the end (median of nine pairs; 1.19 in
    another measurement). Only that last `fsync` makes a file durable. But the system may report a write
    error to an earlier `fsync` only, so `close` raises the exception of each.
    """

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._written = 0
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def wrote(self, count: int) -> None:
        """Count written bytes; start an `fsync` after each 128 MiB, unless one is in progress."""
        self._written += count
        if self._written < _BETWEEN_SYNCS or (self._pending and not self._pending.done()):
            return
        self._settle()
        self._written = 0
        try:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "ftrain-fsync")
            self._pending = self._pool.submit(self._sync)
        except RuntimeError:  # the interpreter is shutting down; the `fsync` at the end is enough
            self._pool = None

    def close(self) -> None:
        """Wait for the `fsync` in progress and raise its exception."""
        try:
            self._settle()
        finally:
            if self._pool is not None:
                self._pool.shutdown()

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
