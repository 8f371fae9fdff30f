"""Warnings of all ranks, each printed once by rank 0, with the numbers of the ranks that issued it."""

from __future__ import annotations

import contextlib
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

from ftrain.core._terminal import say
from ftrain.core._warning_notes import shown
from ftrain.loop.callbacks import FileLogger

__all__ = ["rank_notes"]


@contextlib.contextmanager
def rank_notes(mesh: Any, log: pathlib.Path | None = None) -> Iterator[None]:
    """Collect the warnings of other ranks in a `with` block; rank 0 prints them when the block ends.

    Rank 0 prints its own warnings at once, and at the end the warnings of other ranks that it did not
    issue itself. If the block raises an exception, each rank prints its own warnings.

    Args:
        mesh: the ranks; `None`: this process alone.
        log: the text log of the run, to which rank 0 writes the warnings of other ranks as well.
    """
    if mesh is None or mesh.size() == 1:
        yield
        return
    from ftrain.distributed import gather  # noqa: PLC0415  # needs torch.distributed

    found: list[str] = []
    print_now = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        note = shown(str(message), category, filename, lineno)
        if note not in found:
            found.append(note)
        if mesh.get_rank() == 0:
            print_now(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except BaseException:
            if mesh.get_rank() != 0:
                for note in found:
                    say(f"rank {mesh.get_rank()}: {note}", error=True)
            raise
    every = gather(mesh, found, "warnings")
    if mesh.get_rank() == 0:
        for note in dict.fromkeys(note for of_rank in every for note in of_rank):
            ranks = [rank for rank, of_rank in enumerate(every) if note in of_rank]
            if 0 not in ranks:
                said = f"{note} (on {_named(ranks)})"
                say(said, error=True)
                if log is not None:
                    FileLogger(log).write_note(said)


def _named(ranks: list[int]) -> str:
    from ftrain.distributed.errors import named  # noqa: PLC0415  # as above

    return named(ranks)
