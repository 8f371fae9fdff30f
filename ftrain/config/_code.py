"""Check whether a configuration may run code, and record which user wrote a run directory.

A configuration is a program: `model: {name: "subprocess:getoutput", cmd: ...}` and `imports` run the
code that they name. `resolve`, the only function that imports components, calls `check_code` first.

A run directory records in `.origin` that this user wrote its `config.yaml` on this machine. Without the
machine's identifier, which is not public (`man machine-id`), the record cannot be made on another one.

Read next: `resolve.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import pathlib
import platform

from ftrain.config._source_locations import Path, join
from ftrain.config.errors import ConfigError, Problem
from ftrain.config.schema import Component, Config
from ftrain.core._regular_files import MOST_CONFIG, read_regular
from ftrain.core._terminal import printable, say

__all__ = ["ORIGIN", "check_callbacks", "check_code", "origin"]

#: The file in a run directory that records the user and machine that wrote `config.yaml`.
ORIGIN = ".origin"

#: A directory that holds `config.yaml` and one of these files is a run directory.
_OF_A_RUN = (ORIGIN, "metrics.jsonl", "result.json")


def check_code(config: Config) -> None:
    """Raise if a configuration names code despite `--no-code`; print a note on another user's code.

    Raises:
        ConfigError: the configuration may use built-in names only, but names code; the message lists
            each name.
    """
    named = dict(_named(config))
    if config.builtin_only and named:
        says = (
            "expected a built-in name, because of --no-code (code=False), got {!r}, which is code. "
            "Leave --no-code out only if you trust whoever wrote it."
        )
        raise ConfigError(
            [
                Problem(join(at), config.places.of(at), says.format(name))
                for at, name in named.items()
            ]
        )
    foreign = [name for at, name in named.items() if not config.places.typed(at)]
    if foreign and (why := _somebody_else(config)):
        listed = ", ".join(dict.fromkeys(foreign))
        line = f"note: {why}; its code runs now: {listed} (--no-code refuses it)"
        say(printable(line, one_line=True), error=True)


def check_callbacks(config: Config) -> None:
    """Raise, with `--no-code`, if a callback may write outside of the run's directory.

    Raises:
        ConfigError: an argument of a callback is a text that does not begin with `${run}/`, or has `..`.
    """
    if not config.builtin_only:
        return
    for index, callback in enumerate(config.callbacks):
        for name, value in callback.arguments.items():
            inside = isinstance(value, str) and value.startswith("${run}/") and ".." not in value
            if isinstance(value, str) and not inside:
                at = ("callbacks", index, name)
                says = (
                    "expected a path in the run's directory, ${{run}}/..., because of --no-code "
                    "(code=False), got {!r}. Remove the callback, or leave --no-code out."
                )
                raise ConfigError.at(join(at), config.places.of(at), says.format(value))


def origin(text: str) -> str:
    """Return the content of `.origin`, which proves that this user wrote `text` on this machine."""
    return f"{_signed(b'user')}\n{_signed(text.encode())}\n"


def _named(config: Config) -> list[tuple[Path, str]]:
    """Return the key and the name of each import, and of each component that is user code."""
    components: list[tuple[Path, Component | None]] = [
        (("model",), config.model),
        (("data",), config.data),
        (("loss",), config.loss),
        (("task",), config.task),
        (("optimizer",), config.optimizer),
        (("schedule",), config.schedule),
        *((("callbacks", index), one) for index, one in enumerate(config.callbacks)),
    ]
    return [
        *((("imports", index), name) for index, name in enumerate(config.imports)),
        *(((*at, "name"), one.name) for at, one in components if one and ":" in one.name),
    ]


def _somebody_else(config: Config) -> str | None:
    """Return a reason to doubt that this user wrote a configuration file; `None` without one.

    A file outside of a run directory has no record of its writer, so only its owner is compared.
    """
    path = pathlib.Path(config.places.name)
    try:
        owner, user = os.stat(path).st_uid, os.getuid()
        if owner != user:
            return f"{path} belongs to user {owner}, not to you (user {user})"
        beside = any(os.path.lexists(path.parent / name) for name in _OF_A_RUN)
        if not config.of_run and not (path.name == "config.yaml" and beside):
            return None
        text = read_regular(path, MOST_CONFIG).decode("utf-8")
        expected = origin(text).encode()
        found = read_regular(path.parent / ORIGIN, len(expected))
    except FileNotFoundError as error:
        if error.filename == os.fspath(path):  # the configuration is a dict
            return None
        return f"{path.parent} has no record that you wrote it on this machine"
    except (OSError, ValueError) as error:
        return f"{path}: {getattr(error, 'strerror', None) or error}"
    if hmac.compare_digest(found, expected):
        return None
    if found.partition(b"\n")[0] == expected.partition(b"\n")[0]:
        return f"{path} was changed after the run wrote it"
    return f"{path.parent} was not written by you on this machine"


def _signed(content: bytes) -> str:
    key = _machine() + b" %d" % os.getuid()
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def _machine() -> bytes:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            if found := read_regular(path, 1024).strip():
                return found
    return platform.node().encode()
