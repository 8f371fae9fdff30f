"""Observers of compilation: contexts that are active while a program is compiled.

`ftrain.testing` counts programs with them; training registers none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

__all__ = ["Observer", "observed", "observers"]

#: `(name, reason) -> context`, for the name of a compiled function and the reason for another program
#: ("" for the first).
Observer = Callable[[str, str], AbstractContextManager[None]]

observers: list[Observer] = []


@contextlib.contextmanager
def observed(name: str, reason: str) -> Iterator[None]:
    """Enter the context of every registered observer for one compilation."""
    with contextlib.ExitStack() as stack:
        for observer in tuple(observers):
            stack.enter_context(observer(name, reason))
        yield
