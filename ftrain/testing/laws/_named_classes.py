"""Data attributes of classes that functions read, such as the counter in `Stats.steps += 1`.

`Held` compares the classes of the instances that a function reaches. This module compares the classes
that a function reads by name only.

Read next: `_held_objects.py`, which uses it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Any

from ftrain.core._python_objects import LIBRARIES, data_names, top_package

__all__ = ["ClassData", "of_users"]


class ClassData:
    """Snapshot of the data attributes of a class.

    Attributes:
        name: the class in messages.
        values: its attributes by name, without functions and Python's own names.
    """

    def __init__(self, cls: type) -> None:
        self.name = cls.__qualname__.rpartition("<locals>.")[2]
        self._cls = cls
        self.values = self._read()

    def _read(self) -> dict[str, Any]:
        scope = vars(self._cls)
        return {name: scope[name] for name in data_names(self._cls)}

    def restore(self) -> Iterator[str]:
        """Restore the attributes; yield the names of those that had been added, replaced or deleted."""
        now = self._read()
        for name in {**self.values, **now}:
            if name not in self.values:
                delattr(self._cls, name)
            elif now.get(name, self) is not self.values[name]:
                setattr(self._cls, name, self.values[name])
            else:
                continue
            yield f"{name!r} of {self.name}"


def of_users(classes: Iterable[type]) -> list[ClassData]:
    """Return the data attributes of classes and their bases, without classes of known libraries.

    An enumeration stores combinations of its flags at their first use; this does not count as a change.
    """
    bases = {
        base: None
        for cls in classes
        for base in cls.__mro__
        if top_package(base) not in LIBRARIES and not issubclass(base, enum.Enum)
    }
    return [ClassData(cls) for cls in bases]
