"""Collector for errors of several columns, which are raised as one error.

Read next: `sources/table.py`, which reads a table column by column.
"""

from __future__ import annotations

from types import TracebackType

from ftrain.core.errors import DataError

__all__ = ["Problems"]


class Problems:
    """Context manager that collects each `DataError` raised inside `with problems:`.

    Example:
        >>> problems = Problems()
        >>> for name in ("a", "b"):
        ...     with problems:
        ...         raise DataError(f"column {name!r}: expected a number, got ''. Delete it.")
        >>> problems.check()
        Traceback (most recent call last):
        ...
        ftrain.core.errors.DataError: column 'a': expected a number, got ''. Delete it.
        column 'b': expected a number, got ''. Delete it.
    """

    def __init__(self) -> None:
        self._messages: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._messages)

    def __enter__(self) -> Problems:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, DataError):
            return False
        self._messages.append(str(error))
        return True

    def check(self) -> None:
        """Raise one `DataError` with the message of each collected error on a line of its own."""
        if self._messages:
            raise DataError("\n".join(self._messages))
