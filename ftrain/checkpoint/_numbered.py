"""Numbered checkpoints in a directory, readable while another process writes.

`step-000000000100` is the checkpoint of step 100. `step-000000000100.new`, if it exists, replaces
that checkpoint: it is durable, and its writer is about to delete the old one, or died before that.
"""

from __future__ import annotations

import errno
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from ftrain.checkpoint import _files
from ftrain.checkpoint.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointReadError,
    CorruptCheckpointWarning,
)

__all__ = ["Identity", "Numbered", "identity", "warn_corrupt"]

R = TypeVar("R")

Identity = tuple[int, int, int]

_NAME = re.compile(r"step-(\d{12})(\.new)?", re.ASCII)


class _Found(NamedTuple):
    """Path of a checkpoint, and the identity (inode) of the directory at that path."""

    path: pathlib.Path
    identity: Identity


class Numbered:
    """Reader of the numbered checkpoints in a directory; the directory need not exist."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    def path(self, step: int) -> pathlib.Path:
        """Return the path `.../step-000000000100` of a step's checkpoint."""
        return self.directory / f"step-{step:012d}"

    def replacement(self, step: int) -> pathlib.Path:
        """Return the path `.../step-000000000100.new` of a step's replacement checkpoint."""
        return self.directory / f"step-{step:012d}.new"

    def standing(self, step: int) -> pathlib.Path:
        """Return the path of a step's current checkpoint: the replacement, if there is one."""
        new = self.replacement(step)
        return new if os.path.lexists(new) else self.path(step)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint in the directory, in ascending order."""
        return sorted({step for step, _ in self._names()})

    def unsettled(self) -> list[int]:
        """Return the steps with a replacement checkpoint that has not been renamed yet."""
        return [step for step, new in self._names() if new]

    def read(self, step: int, read: Callable[[pathlib.Path], R]) -> R:
        """Return `read(path)` for a step's checkpoint; read again if it was replaced meanwhile."""
        while True:
            before = identity(path := self.standing(step))
            try:
                return read(path)
            except (CheckpointNotFoundError, CheckpointCorruptError):
                after = self.standing(step)
                if after == path and identity(after) == before:
                    raise

    def first(
        self, steps: Callable[[], Iterable[int]], read: Callable[[pathlib.Path], R]
    ) -> tuple[pathlib.Path, R] | None:
        """Return path and content of the first readable checkpoint, in the order of `steps`.

        If a checkpoint is deleted meanwhile, `steps` is called again.

        Args:
            steps: returns the steps in the order to try; called again for each attempt.
            read: reads a checkpoint, or raises a `CheckpointError`.

        Raises:
            CheckpointCorruptError: checkpoints exist, but none is readable.
        """
        failures: dict[_Found | None, CheckpointError] = {}
        while True:
            for found in self._candidates(steps()):
                if found not in failures:
                    break
            else:
                break
            if found is None:
                continue
            try:
                return found.path, read(found.path)
            except (CheckpointNotFoundError, CheckpointCorruptError) as error:
                failure: CheckpointError = error
            except CheckpointReadError as error:
                if error.errno != errno.EIO:
                    raise
                failure = error
            if identity(found.path) == found.identity:  # else the checkpoint was deleted meanwhile
                warn_corrupt(found.path, f"another checkpoint is loaded instead. {failure}")
                failures[found] = failure
        if failures:
            raise CheckpointCorruptError(
                f"{self.directory}: expected a valid checkpoint, got only damaged ones: "
                + " ".join(str(failure) for failure in failures.values())
            )
        return None

    def _candidates(self, steps: Iterable[int]) -> Iterator[_Found | None]:
        """Yield the checkpoints of each step; `None` for a step whose checkpoint has been deleted.

        A checkpoint that replaces an earlier one of its step comes before that.
        """
        for step in steps:
            paths = (self.replacement(step), self.path(step))
            there = [
                _Found(path, standing) for path in paths if (standing := identity(path)) is not None
            ]
            if there:
                yield from there
            else:
                yield None

    def _names(self) -> Iterator[tuple[int, bool]]:
        try:
            names = _files.system.list(str(self.directory))
        except FileNotFoundError:
            return
        except OSError as error:
            raise CheckpointReadError(
                "list the checkpoints", error, "Check who may read the directory."
            ) from error
        for name in names:
            if found := _NAME.fullmatch(name):
                yield int(found[1]), found[2] is not None


def warn_corrupt(path: str | pathlib.Path, consequence: str) -> None:
    warnings.warn(
        f"the checkpoint {path} failed verification: {consequence}",
        CorruptCheckpointWarning,
        stacklevel=5,
    )


def identity(path: pathlib.Path) -> Identity | None:
    """Return device, inode and change time of a file, or `None` if it is missing.

    The change time is included because an inode may be reused.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointReadError(
            "inspect the checkpoint", error, "Check who may read it."
        ) from error
    return found.st_dev, found.st_ino, found.st_ctime_ns
