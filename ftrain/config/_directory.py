"""Run directories: checks that a directory holds a run or is in use, and numbering of new ones."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from ftrain.checkpoint.locks import Lock
from ftrain.config.errors import ConfigError
from ftrain.config.schema import Config
from ftrain.core._regular_files import read_json
from ftrain.data.fitted import FILE
from ftrain.loop import LogLockedError
from ftrain.loop._log_locks import LogLocks

__all__ = [
    "FILES",
    "LOCK",
    "check_logs",
    "check_replaceable",
    "holds_a_run",
    "in_use",
    "refusal",
    "unused",
]

#: Files that a run writes into its directory, beside `checkpoints/`.
FILES = (
    "config.yaml",
    FILE,
    "metrics.jsonl",
    "metrics.csv",
    "train.log",
    "curves.png",
    "result.json",
)

#: The file that a run locks before it writes any other.
LOCK = ".lock"


def holds_a_run(folder: pathlib.Path) -> bool:
    """Return True if a directory holds a run, unless that run failed before its first step."""
    if not any((folder / name).exists() for name in (*FILES, "checkpoints")):
        return False
    checkpoints = folder / "checkpoints"
    if any(int(path.name[5:] or 0) for path in checkpoints.glob("step-" + "[0-9]" * 12)):
        return True
    if (ended := _outcome(folder)) is not None:
        return ended != ("failed", 0)
    if any((folder / name).exists() for name in FILES[2:]):
        return True
    # Without a lock, the configuration is not a run's: a run locks its directory before it writes.
    return not (folder / LOCK).exists() and not (checkpoints / LOCK).exists()


def in_use(folder: pathlib.Path) -> bool:
    """Return True if another process holds the lock of a run's directory."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with Lock.file(folder / LOCK) as lock:
            return not lock.held
    except OSError:  # no locks on this file system: use cannot be detected
        return False


def unused(config: Config) -> Config:
    """Create an unused run directory, and return the configuration with that directory.

    With `versions`, `-2`, `-3`, ... is appended to the name of a directory that holds a run. Without
    `versions`, the configuration is returned unchanged, and no directory is created.

    Raises:
        OSError: a directory cannot be created.
    """
    if not config.versions or config.fast_dev_run:
        return config
    for number in itertools.count(1):
        folder = config.folder
        if number > 1:
            folder = folder.with_name(f"{folder.name}-{number}")
        if not _holds_files(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Created exclusively: of two processes that start at once, one takes the next number.
            with contextlib.suppress(FileExistsError), (folder / LOCK).open("x"):
                return config.model_copy(update={"output_dir": str(folder), "versions": False})
    raise AssertionError


def check_replaceable(config: Config, folder: pathlib.Path) -> None:
    """Raise if `checkpoints` is a file or link, or if a directory has the name of a run's file."""
    there = folder / "checkpoints"
    if there.exists() and not there.is_dir():
        raise refusal(
            config,
            f"expected a directory of checkpoints, got the file {there}. Move the file away, or write "
            "output_dir=...",
        )
    if there.is_symlink():
        raise refusal(
            config,
            f"expected a directory, got the symbolic link {there} to {os.readlink(there)}, where a run "
            f"may not write. Delete the link. To keep runs elsewhere, make {folder} itself the link, or "
            "write output_dir=...",
        )
    for name in FILES:
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            raise refusal(
                config,
                f"expected a file, got the directory {folder / name}, which no run has written. Move "
                "the directory away, or write output_dir=...",
            )


def check_logs(config: Config, folder: pathlib.Path, callbacks: Iterable[Any]) -> None:
    """Raise if another process is writing to the logs of the run directory.

    A Python program that trains without a configuration locks its logs, but not the directory.
    """
    locks = LogLocks()
    paths = (x for each in callbacks for x in getattr(each, "exclusive_files", ()))
    try:
        locks.acquire(paths, warn=False)
    except LogLockedError:
        raise refusal(
            config, f"another process is training in {folder}. Wait for that process, or end it."
        ) from None
    finally:
        locks.close()  # the trainer locks them for the run


def refusal(config: Config, message: str) -> ConfigError:
    """Return a `ConfigError` about the run directory, at the key `output_dir`.

    The error has no key if the configuration was read from a run's directory.
    """
    if config.of_run:  # named by its directory, not by a key that the user wrote
        return ConfigError.at("", "", message)
    return ConfigError.at("output_dir", config.places.of(("output_dir",)), message)


def _holds_files(folder: pathlib.Path) -> bool:
    names = (*FILES, "checkpoints", LOCK)
    return any(os.path.lexists(folder / name) for name in names)


def _outcome(folder: pathlib.Path) -> tuple[object, object] | None:
    """Return the status and step in `result.json`; `None` if it is missing or damaged."""
    try:
        found = read_json(folder / "result.json")
    except (OSError, ValueError):
        return None
    return (found.get("status"), found.get("step")) if isinstance(found, dict) else None
