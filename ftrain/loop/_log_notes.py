"""Warnings that Python shows during a run, written to its text logs as well."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from ftrain.core._warning_notes import shown

__all__ = ["LogNotes", "collected"]


@contextlib.contextmanager
def collected(add: Callable[[str], Any]) -> Iterator[None]:
    """Call `add` with each warning that is shown in a `with` block, as a note; it is shown as before.

    Only warnings that pass the filters are shown.
    """
    show, active = warnings.showwarning, True

    def also(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        show(message, category, filename, lineno, file, line)
        if active:
            add(shown(str(message), category, filename, lineno))

    warnings.showwarning = also
    try:
        yield
    finally:
        active = False
        if warnings.showwarning is also:  # else restoring it would remove a later replacement
            warnings.showwarning = show


class LogNotes:
    """Notes for the callbacks that have `write_note`, each text once.

    Before the run begins to write, because it may still be refused, notes are kept.
    """

    def __init__(self, callbacks: Iterable[Any]) -> None:
        self._write: list[Callable[[str], Any]] = [
            each.write_note for each in callbacks if hasattr(each, "write_note")
        ]
        self._notes: dict[str, None] = {}
        self._begun = False

    def collected(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that adds the warnings shown in it."""
        return collected(self.add) if self._write else contextlib.nullcontext()

    def begin(self) -> None:
        """Write the notes so far; write each later one at once."""
        self._begun = True
        for note in self._notes:
            self._send(note)

    def add(self, note: str) -> None:
        """Write a note, or keep it until `begin`."""
        if note not in self._notes:
            self._notes[note] = None
            if self._begun:
                self._send(note)

    def _send(self, note: str) -> None:
        for write in self._write:
            write(note)
