"""Errors of saving and loading checkpoints; each names the fault, the file and the remedy."""

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

#: Remedy for a damaged file.
RESTORE = "Restore the file from a copy, or use another one."


class CheckpointError(Exception):
    """Base class of the errors that saving and loading checkpoints raise."""

    def __init__(self, message: str) -> None:
        # Names come from untrusted files: escape them, so that the message can always be printed.
        shown = message if len(message) <= _LONGEST else message[:_LONGEST] + " ..."
        super().__init__(shown.encode(errors="backslashreplace").decode())


class _FileError(CheckpointError):
    """Base class of errors for a failed operating system call.

    Attributes:
        path: the file or directory.
        errno: the error number of the operating system.
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
    """Error for a checkpoint or file of weights that could not be written; old files are unchanged."""


class CheckpointReadError(_FileError):
    """Error for a checkpoint or file of weights that the operating system could not read."""


class CheckpointNotFoundError(CheckpointError):
    """Error for a path or directory without a checkpoint."""


class CheckpointExistsError(CheckpointError):
    """Error for saving to a path with other content, because checkpoints are never overwritten."""


class CheckpointLockedError(CheckpointError):
    """Error for a directory of checkpoints that another process or another store has locked."""


class CheckpointCorruptError(CheckpointError):
    """Error for checkpoint files whose bytes differ from those written, or violate the format."""


class CheckpointVersionError(CheckpointError):
    """Error for a checkpoint in a version of the format that this ftrain cannot read."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """Error for a checkpoint whose state has another structure than the given state `like`."""


class CheckpointRankError(CheckpointError):
    """Error on all other ranks if a rank fails, exits, does not answer, or holds another state.

    Attributes:
        rank: the number of the rank that failed.
        host: the name of that rank's machine; `"?"` if the rank never answered.
        cause: the text of that rank's exception, or a description of the failure.
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
    """Warning about a checkpoint that was skipped because it failed verification."""


class DeterminismWarning(UserWarning):
    """Warning about a setting that changed since the save and on which a run's bits depend."""
