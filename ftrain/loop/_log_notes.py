"""Collection of the warnings that Python shows during a run, for the run's text logs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from ftrain.core._warning_notes import shown

__all__ = ["LogNotes", "collected"]


@contextlib.contextmanager
def collected(add: Callable[[str], Any]) -> Iterator[None]:
    """Call `add` with the text of each warning that Python shows in a `with` block.

    Only warnings that pass the filters are shown; they are still shown where they were shown before.
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
    """Texts of warnings (notes), each passed once to the callbacks with a method `write_note`.

    Until the run begins to write, notes are kept, because the run may still be refused.
    """

    def __init__(self, callbacks: Iterable[Any]) -> None:
        self._write: list[Callable[[str], Any]] = [
            each.write_note for each in callbacks if hasattr(each, "write_note")
        ]
        self._notes: dict[str, None] = {}
        self._begun = False

    def collected(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which each warning that Python shows is added as a note."""
        return collected(self.add) if self._write else contextlib.nullcontext()

    def begin(self) -> None:
        """Write the notes added so far; from now on, write each note at once."""
        self._begun = True
        for note in self._notes:
            self._send(note)

    def add(self, note: str) -> None:
        """Add a note: write it to the logs or, until `begin` is called, store it."""
        if note not in self._notes:
            self._notes[note] = None
            if self._begun:
                self._send(note)

    def _send(self, note: str) -> None:
        for write in self._write:
            write(note)
