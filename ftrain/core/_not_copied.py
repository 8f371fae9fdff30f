"""Base class of the pure functions that `copy.deepcopy` returns as they are, as it does Python's own.

A module may hold one as an attribute, and a copy of the module calls the same function.
"""

from __future__ import annotations

from typing import Any, Self

__all__ = ["NotCopied"]


class NotCopied:
    """Base class of functions that are their own deep copies."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the function itself, which has no state that a caller could change."""
        return self
