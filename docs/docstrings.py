"""Griffe extension: show doctests as examples, and comparisons as text."""

from __future__ import annotations

import re
from typing import Any

import griffe

# A run of lines that begins with a prompt after a blank line, and ends at the next blank line.
_BARE = re.compile(r"(?:(?<=\n\n)|\A)(?P<block>>>> .*?)(?=\n\n(?!>>> )|\Z)", re.DOTALL)

# A comparison at the start of a line or of an item ("eps: >= 0"), which Markdown takes for a quotation.
_COMPARISON = re.compile(r"^(\s*(?:[\w.*]+: )?)(?=>(?!>>))", re.MULTILINE)


def without_quotations(text: str) -> str:
    """Return a docstring whose leading comparisons are escaped."""
    return _COMPARISON.sub(r"\1\\", text)


def as_section(text: str) -> str:
    """Return a docstring whose doctests stand in an `Examples` section."""

    def section(match: re.Match[str]) -> str:
        lines = match["block"].splitlines()
        return "Examples:\n" + "\n".join(f"    {line}" if line else "" for line in lines)

    return _BARE.sub(section, re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE))


class Docstrings(griffe.Extension):
    """Rewrite each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = as_section(without_quotations(obj.docstring.value))
