"""File systems that fail, stall or record: substitutes for `ftrain.checkpoint._files.system`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from ftrain.checkpoint._files import Files


class Event(NamedTuple):
    """One recorded operation, with the `data` of a write or the `source` of a rename."""

    operation: str
    path: str
    data: bytes = b""
    source: str = ""


class Recording(Files):
    """A file system that performs every operation and records those that change the disk."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def call(self, operation: str, path: str, function: Callable[..., Any], *args: Any) -> Any:
        result = super().call(operation, path, function, *args)
        if operation == "write":
            self.events.append(Event(operation, path, bytes(args[1][:result])))
        elif operation == "rename":
            self.events.append(Event(operation, path, source=args[0]))
        else:
            self.events.append(Event(operation, path))
        return result


class Failing(Files):
    """A file system whose `k`-th operation fails, and with `sticky` all later ones of its kind.

    With `code=None`, the operation is a short write, of one byte.
    """

    def __init__(self, k: int, code: int | None, sticky: bool = False) -> None:
        self.k, self.code, self.sticky = k, code, sticky
        self.count = -1
        self.failed: str | None = None
        self.operations: list[str] = []

    def call(self, operation: str, path: str, function: Callable[..., Any], *args: Any) -> Any:
        self.count += 1
        self.operations.append(operation)
        due = self.count == self.k or (self.sticky and operation == self.failed)
        if not due:
            return super().call(operation, path, function, *args)
        if self.code is None:
            if operation == "write":
                self.failed = operation
                return super().call(operation, path, function, args[0], args[1][:1])
            return super().call(operation, path, function, *args)
        self.failed = operation
        if operation == "close":
            function(*args)  # a failed close closes the descriptor, too
        raise OSError(self.code, os.strerror(self.code), path)
