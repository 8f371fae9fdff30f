"""Store of the checkpoints of a run: numbered, retained by a policy, verified when read.

Read next: `save.py`, which writes a checkpoint; `_retention.py`, which selects those to keep.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, TypeVar

from ftrain.checkpoint import _files
from ftrain.checkpoint._background import Background
from ftrain.checkpoint._directories import discard
from ftrain.checkpoint._draft import Collected, Draft, collect, draft, step_number
from ftrain.checkpoint._host_copies import PinnedMemory, computed
from ftrain.checkpoint._numbered import Identity, Numbered, identity, warn_corrupt
from ftrain.checkpoint._read import open_checkpoint
from ftrain.checkpoint._retention import Mode, RetentionPolicy, StoredStep
from ftrain.checkpoint._writer_lock import WriterLock
from ftrain.checkpoint.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
)
from ftrain.checkpoint.load import OnChange, load, verifies, verify
from ftrain.checkpoint.locks import Turns
from ftrain.checkpoint.manifest import MANIFEST, SUMS
from ftrain.checkpoint.save import publish, refusals
from ftrain.core._words import did_you_mean

__all__ = ["Store"]

T = TypeVar("T")


class Store:
    """Directory of checkpoints named `step-000000000100`, for one writer and any number of readers.

    A new checkpoint is durable before an old one is deleted, and a deleted one disappears at once, so
    that a reader never sees part of a checkpoint. `lock`, or the first `save`, locks the directory until
    the store is closed or its process ends; reading needs no lock. Threads may share a store.

    Args:
        directory: the directory; created by the first save.
        keep_last: the number of newest checkpoints to keep; `None` keeps all.
        keep_best: the number of best checkpoints to keep, by `metric`.
        metric: the name of the metric in `save(..., metrics=...)`; NaNs are never the best.
        mode: `"min"` if a smaller metric is better, `"max"` if a larger one is.
        keep_every_steps: keep checkpoints of steps that are multiples of this.
        keep_every_hours: keep one checkpoint per this many hours.
        asynchronous: write in a thread: `save` returns when the state is copied. One save at a time is
            in progress; its exception is raised by the next `save`, `wait` or `close`, or at the end of
            the process.
        copy: True if an asynchronous save copies the state first, because the loop donates its states
            (`ftrain.compile(..., donate=True)`) or writes to them. False: states are immutable.
        fingerprint: as for `checkpoint.save`; compared at loading.
        lock: False: take no lock, for file systems without locks. The caller must then ensure that no
            other process writes to the directory.

    Attributes:
        keeps_best: True if the store keeps the best checkpoints as well as the newest.

    Raises:
        ValueError: the policy keeps no checkpoint; the directory is a file, or is itself a checkpoint.

    Example:
        >>> import tempfile, torch
        >>> with Store(tempfile.mkdtemp(), keep_last=2, keep_best=1) as store:
        ...     for step, loss in enumerate([3.0, 1.0, 2.0, 4.0]):
        ...         path = store.save({"w": torch.tensor(step)}, step=step, metrics={"loss": loss})
        >>> store.steps()
        [1, 2, 3]
        >>> store.load(like={"w": torch.tensor(0)})[0]
        {'w': tensor(3)}
        >>> store.best().name
        'step-000000000001'
    """

    collective = False  # True if all ranks of a mesh must call each method together

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int | None = 3,
        keep_best: int | None = None,
        metric: str = "loss",
        mode: Mode = "min",
        keep_every_steps: int | None = None,
        keep_every_hours: float | None = None,
        asynchronous: bool = False,
        copy: bool = True,
        fingerprint: Mapping[str, Any] | None = None,
        lock: bool = True,
    ) -> None:
        if not os.fspath(directory):
            raise ValueError(
                "directory: expected a path, got an empty text. Write Store('.') for this directory."
            )
        self.directory = pathlib.Path(os.path.abspath(directory))
        _check_directory(self.directory)
        self._policy = RetentionPolicy(
            keep_last, keep_best, metric, mode, keep_every_steps, keep_every_hours
        )
        self.keeps_best = keep_best is not None or keep_last is None
        self._asynchronous, self._copy = asynchronous, copy
        self._fingerprint = dict(fingerprint or {})
        self._background = Background()
        self._pinned = PinnedMemory()
        self._lock = WriterLock(self.directory, lock)
        self._turns = Turns()
        self._numbered = Numbered(self.directory)
        self._entries: dict[int, tuple[Identity | None, StoredStep]] = {}
        self._has_ranked = False  # True once metrics were saved, or a warning was issued

    def lock(self) -> bool:
        """Lock the directory for this writer now, instead of at the first `save`; create it if missing.

        Returns:
            True if this call acquired the lock; False if the store held it, or has `lock=False`.

        Raises:
            CheckpointWriteError: the directory cannot be created, or its file system has no locks.
            CheckpointLockedError: another writer holds the lock, or the locked directory was replaced.
        """
        with self._turns.taken():
            return self._lock.acquire()

    def discard_unused(self) -> None:
        """Delete the directories that this store has created, if only its lock file is in them."""
        with self._turns.taken():
            self._lock.discard_unused()

    def save(
        self,
        state: Any,
        *,
        step: int,
        metadata: Any = None,
        metrics: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> pathlib.Path:
        """Save the checkpoint of a step, then delete the checkpoints that the policy does not keep.

        Args:
            state: a pytree of tensors.
            step: 0 or more. The same content may be saved again for a step; other content is refused,
                unless the existing checkpoint is damaged.
            metadata: JSON: the data cursor and all other values that the loop needs to resume.
            metrics: numbers that rank checkpoints; warns once if the store's metric is missing.
            replace: True to replace other content of the same step, which is deleted only when the
                new content is durable.

        Returns:
            The path of the checkpoint, which exists once an asynchronous save is done.

        Raises:
            CheckpointWriteError: a system call failed; an asynchronous save raises it later.
            CheckpointLockedError: another process writes to the directory, or may do so, because the
                directory that this store has locked was deleted or replaced.
            CheckpointExistsError: another state was saved for this step.
        """
        with self._turns.taken():
            self._background.wait()
            step = step_number(step)
            content = collect(state, metadata, step, metrics, self._fingerprint)
            self._check_metric(metrics or {})
            self._lock.acquire()
            self._start(content, step, replace)
            return self._numbered.path(step)

    def load(
        self,
        like: T,
        *,
        step: int | None = None,
        default: Any = None,
        on_change: OnChange = "warn",
    ) -> tuple[T, Any]:
        """Load the state of the newest valid checkpoint, or of the given step, bit for bit.

        Args:
            like: a state of the same structure.
            step: the step to load; default: the newest. A damaged checkpoint is skipped with a
                `CorruptCheckpointWarning`; with an explicit step it raises.
            default: the initial metadata: without any checkpoint, `(like, default)` is returned.
            on_change: as for `checkpoint.load`.

        Returns:
            `(state, metadata)`.

        Raises:
            CheckpointNotFoundError: no checkpoint exists, and `default` is not given.
            CheckpointCorruptError: checkpoints exist, and all of them are damaged.
            CheckpointMismatchError: the saved state differs in structure from `like`.
        """
        self.wait()

        def read(path: pathlib.Path) -> tuple[T, Any]:
            return load(path, like, fingerprint=self._fingerprint, on_change=on_change)

        if step is not None:
            return self._numbered.read(step_number(step), read)
        found = self._numbered.first(lambda: reversed(self.steps()), read)
        if found is not None:
            return found[1]
        if default is None:
            raise CheckpointNotFoundError(self._nothing())
        return like, default

    def latest(self) -> pathlib.Path | None:
        """Return the path of the newest checkpoint that passes verification; `None` if there is none.

        The checkpoint may be deleted or replaced by a writer before it is read; `load` then searches
        again. `step-....new` is a durable replacement, which its writer will rename or, if the writer
        died, the next `save`.
        """
        found = self._numbered.first(lambda: reversed(self.steps()), verify)
        return None if found is None else found[0]

    def best(self) -> pathlib.Path | None:
        """Return the path of the best checkpoint by the store's metric that passes verification."""
        found = self._numbered.first(
            lambda: [entry.step for entry in self._policy.ranked(self._all_entries())], verify
        )
        return None if found is None else found[0]

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint in the store, in ascending order."""
        return self._numbered.steps()

    def delete(self, step: int) -> None:
        """Delete the checkpoint of a step, to resume from an earlier one.

        Raises:
            CheckpointNotFoundError: the step has no checkpoint.
            CheckpointWriteError: a system call failed.
        """
        with self._turns.taken():
            self._background.wait()
            self._lock.acquire()
            self._settle()
            if step not in self.steps():
                raise CheckpointNotFoundError(
                    f"step: expected one of {self.steps()}, in {self.directory}, got {step}. Pass one."
                )
            self._discard([step])

    def wait(self) -> None:
        """Wait until the save in progress is durable; raise its exception."""
        with self._turns.taken():
            self._background.wait()

    def close(self) -> None:
        """Wait until the save in progress is durable, then unlock the directory for other writers."""
        with self._turns.taken():
            try:
                self._background.close()
            finally:
                self._pinned = PinnedMemory()
                self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({str(self.directory)!r}, steps={self.steps()})"

    def _nothing(self) -> str:
        there = "" if os.path.isdir(self.directory) else " (the directory does not exist)"
        return (
            f"no checkpoint found in {self.directory}{there}. To start from `like` in that case, pass "
            "the initial metadata: store.load(like, default={...})."
        )

    def _check_metric(self, metrics: Mapping[str, Any]) -> None:
        """Warn once if saved metrics lack the metric by which the store ranks checkpoints."""
        name = self._policy.metric
        if self._policy.best is None or self._has_ranked or not metrics:
            return
        self._has_ranked = True
        if name in metrics:
            return
        given = f"{', '.join(map(repr, metrics))}.{did_you_mean(name, metrics)}"
        warnings.warn(
            f"metrics: expected {name!r}, by which keep_best={self._policy.best} ranks checkpoints, got "
            f"{given} A checkpoint without it is never among the best. Write save(..., metrics=...), "
            "or Store(..., metric=...).",
            UserWarning,
            stacklevel=3,
        )

    def _start(self, content: Collected, step: int, replace: bool) -> None:
        """Publish the checkpoint of a step, in the background if saves are asynchronous."""
        if not self._asynchronous:
            self._publish(content.on_host(self._pinned), step, replace)
        elif self._copy:
            content = content.copied(self._pinned)
            self._background.start(lambda: self._publish(content, step, replace))
        else:  # the thread's streams do not wait for streams that compute the state
            after = computed(content.leaves)
            self._background.start(
                lambda: self._publish(content.on_host(self._pinned, after), step, replace)
            )

    def _publish(self, collected: Collected, step: int, replace: bool) -> None:
        content = draft(collected)
        self._settle()
        path = str(self._numbered.path(step))
        try:
            if replace and os.path.lexists(path):
                self._replace(content, step)
            else:
                publish(content, path)
        except CheckpointExistsError:
            if verifies(path):
                raise
            warn_corrupt(path, "it is replaced by a new one.")
            self._replace(content, step)
        self._retain(step)

    def _retain(self, step: int) -> None:
        """Delete the checkpoints that the policy does not keep; always keep the checkpoint of `step`."""
        entries = self._all_entries()
        kept = self._policy.kept(entries) | {step}
        self._discard([entry.step for entry in entries if entry.step not in kept])

    def _replace(self, content: Draft, step: int) -> None:
        """Write a new checkpoint as `step-N.new`, which readers prefer, then delete the old one."""
        publish(content, str(self._numbered.replacement(step)))
        self._take_place(step)

    def _take_place(self, step: int) -> None:
        path = str(self._numbered.path(step))
        with refusals(f"delete the old checkpoint {path} (the new one is safe)"):
            if os.path.lexists(path):
                _raise(discard(path))
            _files.system.rename(str(self._numbered.replacement(step)), path)

    def _settle(self) -> None:
        """Complete or undo replacements of checkpoints that a dead or failed writer left unfinished."""
        for step in self._numbered.unsettled():
            new = str(self._numbered.replacement(step))
            if verifies(new):
                self._take_place(step)
            else:
                warn_corrupt(new, "it is deleted")
                with refusals(f"delete {new}"):
                    _raise(discard(new))

    def _discard(self, steps: Iterable[int]) -> None:
        for step in steps:
            with refusals(f"delete the old checkpoint of step {step} (the new one is safe)"):
                _raise(discard(str(self._numbered.path(step))))

    def _all_entries(self) -> list[StoredStep]:
        """Return step, metrics and time of each readable checkpoint, for the retention policy."""
        found: dict[int, tuple[Identity | None, StoredStep]] = {}
        for step in self.steps():
            path, known = self._numbered.standing(step), self._entries.get(step)
            with contextlib.suppress(CheckpointError, OSError):
                there = identity(path)
                if known is None or known[0] != there:
                    with open_checkpoint(str(path)) as source:
                        seconds = _files.system.modified(os.path.join(path, SUMS))
                        known = (there, StoredStep(step, source.manifest.metrics, seconds))
                found[step] = known
        self._entries = found  # may drop entries of another thread, which are then read again
        return [entry for _, entry in found.values()]


def _check_directory(directory: pathlib.Path) -> None:
    if os.path.isfile(directory):
        raise ValueError(
            f"directory: expected a directory of checkpoints, got the file {directory}. Use another "
            "path."
        )
    if all(os.path.isfile(directory / name) for name in (MANIFEST, SUMS)):
        raise ValueError(
            f"directory: expected a directory of checkpoints, got the single checkpoint {directory}. "
            f"Write Store({str(directory.parent)!r})."
        )


def _raise(error: OSError | None) -> None:
    if error is not None:
        raise error
