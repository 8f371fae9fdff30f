"""Errors of saving and loading; each names the fault, the place and the remedy."""

from __future__ import annotations

import os

__all__ = [
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointExistsError",
    "CheckpointLockedError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointRankError",
    "CheckpointReadError",
    "CheckpointVersionError",
    "CheckpointWriteError",
    "CorruptCheckpointWarning",
    "DeterminismWarning",
]

_LONGEST = 5000


class CheckpointError(Exception):
    """Base class of the errors of `ftrain.checkpoint`."""

    def __init__(self, message: str) -> None:
        # Names come from untrusted files: escape them, so that the message can always be printed.
        shown = message if len(message) <= _LONGEST else message[:_LONGEST] + " ..."
        super().__init__(shown.encode(errors="backslashreplace").decode())


class _FileError(CheckpointError):
    """Base class of errors for a failed operating system call.

    Attributes:
        path: the file or directory.
        errno: the system's number for what went wrong.
        remedy: a sentence that says how to correct the error; `""` if there is no advice.
    """

    path: str
    errno: int | None
    remedy: str

    def __init__(self, action: str, error: OSError, remedy: str, more: str = "") -> None:
        self.path = os.fsdecode(error.filename) if error.filename is not None else "?"
        self.errno, self.remedy = error.errno, remedy
        reason = error.strerror or str(error)
        super().__init__(
            f"could not {action}: {reason} (errno {error.errno}), {self.path}. {remedy} {more}".rstrip()
        )


class CheckpointWriteError(_FileError):
    """Error for a checkpoint that could not be written; existing files are unchanged."""


class CheckpointReadError(_FileError):
    """Error for a checkpoint that could not be read."""


class CheckpointNotFoundError(CheckpointError):
    """Error for a missing checkpoint."""


class CheckpointExistsError(CheckpointError):
    """Error for saving to a path that exists already, because checkpoints are never overwritten."""


class CheckpointLockedError(CheckpointError):
    """Error for a directory whose lock another process, or another store, holds."""


class CheckpointCorruptError(CheckpointError):
    """Error for files that differ from those written, or violate the format."""


class CheckpointVersionError(CheckpointError):
    """Error for a checkpoint in a version of the format that this ftrain cannot read."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """Error for a checkpoint whose state differs from the state `like` that it is loaded into."""


class CheckpointRankError(CheckpointError):
    """Error on every other rank if a rank fails, ends, or does not answer, or holds another state.

    Attributes:
        rank: the number of the rank that failed.
        host: the name of its machine; `"?"` if it never answered.
        cause: the text of its exception, or what happened to it.
    """

    def __init__(self, action: str, rank: int, host: str, cause: str) -> None:
        self.rank, self.host, self.cause = rank, host, cause
        super().__init__(
            f"could not {action}: rank {rank} on {host}: {cause.rstrip('. ')}. Correct the cause there, "
            "and repeat the call on all ranks; if a process has ended, start the job again."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _restore_rank_error, (str(self), self.rank, self.host, self.cause)


def _restore_rank_error(message: str, rank: int, host: str, cause: str) -> CheckpointRankError:
    error = CheckpointRankError.__new__(CheckpointRankError)
    CheckpointError.__init__(error, message)
    error.rank, error.host, error.cause = rank, host, cause
    return error


class CorruptCheckpointWarning(UserWarning):
    """Warning that a checkpoint was skipped because it failed verification."""


class DeterminismWarning(UserWarning):
    """Warning that a setting which the bits of a run depend on has changed since the save."""
