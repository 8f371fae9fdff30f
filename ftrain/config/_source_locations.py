"""Source locations of configuration keys."""

from __future__ import annotations

import dataclasses

from ftrain.core._terminal import printable

__all__ = ["Path", "Places", "join"]

#: Path of a value in a configuration: keys of mappings and indices of lists, from the root down.
Path = tuple[str | int, ...]


@dataclasses.dataclass
class Places:
    """Source locations of keys: a line of the file, or an argument of the command line.

    Attributes:
        name: the name of the file, as the user gave it.
        lines: the line of each path, from 1.
        overrides: for each path set on the command line, the argument that set it.
    """

    name: str
    lines: dict[Path, int] = dataclasses.field(default_factory=dict)
    overrides: dict[Path, str] = dataclasses.field(default_factory=dict)

    def of(self, path: Path) -> str:
        """Return the source location of a key or, if unknown, of a key below it or of its parent.

        Example:
            >>> places = Places("a.yaml", {("epochs",): 3}, {("seed",): "seed=1"})
            >>> places.of(("epochs",)), places.of(("seed",)), places.of(("other",))
            ('a.yaml:3', 'the command line (seed=1)', 'a.yaml')
        """
        for length in range(len(path), 0, -1):
            if path[:length] in self.overrides:
                return f"the command line ({self.overrides[path[:length]]})"
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}"
            for deeper, override in self.overrides.items():
                if deeper[:length] == path[:length]:
                    return f"the command line ({override})"
        return self.name

    def typed(self, path: Path) -> bool:
        """Return True if the value at a path was set on the command line."""
        return any(path[:length] in self.overrides for length in range(1, len(path) + 1))


def join(path: Path) -> str:
    r"""Return the dotted form of a key path, such as `optimizer.learning_rate`.

    Example:
        >>> join(("callbacks", 0, "patience"))
        'callbacks.0.patience'
        >>> join(("optimizer", ""))  # an empty key would be invisible
        "optimizer.''"
        >>> print(join(("model", "\x1b[2J")))  # control characters are escaped
        model.\x1b[2J
    """
    return ".".join(printable(part, one_line=True) or "''" for part in path)
