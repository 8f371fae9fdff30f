"""What saving and loading raise; each says what was found, where, and what to do instead."""

from __future__ import annotations

import os

__all__ = [
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointExistsError",
    "CheckpointLockedError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointReadError",
    "CheckpointVersionError",
    "CheckpointWriteError",
    "CorruptCheckpointWarning",
    "DeterminismWarning",
]

_LONGEST = 5000


class CheckpointError(Exception):
    """What every error of this package is."""

    def __init__(self, message: str) -> None:
        # A hostile file chooses its names: whatever they hold, the message can be printed.
        shown = message if len(message) <= _LONGEST else message[:_LONGEST] + " ..."
        super().__init__(shown.encode(errors="backslashreplace").decode())


class _FileError(CheckpointError):
    """An operating system's refusal.

    Attributes:
        path: the file or directory.
        errno: the system's number for what went wrong.
    """

    path: str
    errno: int | None

    def __init__(self, action: str, error: OSError, remedy: str) -> None:
        self.path = os.fsdecode(error.filename) if error.filename is not None else "?"
        self.errno = error.errno
        reason = error.strerror or str(error)
        super().__init__(
            f"could not {action}: {reason} (errno {error.errno}), {self.path}. {remedy}"
        )


class CheckpointWriteError(_FileError):
    """A checkpoint could not be written; what was there before is as it was."""


class CheckpointReadError(_FileError):
    """A checkpoint could not be read."""


class CheckpointNotFoundError(CheckpointError):
    """There is no checkpoint at this place."""


class CheckpointExistsError(CheckpointError):
    """There is a checkpoint already at this place; none is ever overwritten."""


class CheckpointLockedError(CheckpointError):
    """Another process, or another store of this one, writes to the directory, or may."""


class CheckpointCorruptError(CheckpointError):
    """The files are not what was written, or not what the format allows."""


class CheckpointVersionError(CheckpointError):
    """The checkpoint was written by a version of the format that this one does not know."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """The checkpoint holds another state than the one it is loaded into."""


class CorruptCheckpointWarning(UserWarning):
    """A checkpoint was passed over because it does not verify."""


class DeterminismWarning(UserWarning):
    """What the bits of a run depend on is not what it was when the checkpoint was saved."""
