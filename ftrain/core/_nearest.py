"""Suggestions for misspelled names, without importing torch, so that configuration checks start fast."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to an unknown name, ignoring case; `None` if none is similar.

    >>> nearest("Parms", ["step", "params"]), nearest("loss", ["step", "params"])
    ('params', None)
    """
    lowered = {candidate.lower(): candidate for candidate in sorted(known)}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    return lowered[near[0]] if near else None
