"""Configuration errors, with key, source location and remedy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ftrain.core._nearest import nearest
from ftrain.core._terminal import printable

__all__ = ["ConfigError", "Problem", "did_you_mean"]


class Problem(NamedTuple):
    """One mistake in a configuration.

    Attributes:
        key: the dotted path, such as `optimizer.learning_rate`; empty for the whole configuration.
        place: its source location: `digits.yaml:7`, `the command line`, or the file alone.
        message: the problem and its remedy.
    """

    key: str
    place: str
    message: str

    def __str__(self) -> str:
        place = printable(self.place, one_line=True)
        return ": ".join(part for part in (place, self.key, self.message) if part)


class ConfigError(ValueError):
    """Error for an invalid configuration; it holds every problem.

    Attributes:
        problems: at least one `Problem`; `key` and `place` are those of the first.

    Example:
        >>> error = ConfigError([Problem("epochs", "digits.yaml:2", "expected a whole number")])
        >>> print(error)
        digits.yaml:2: epochs: expected a whole number
        >>> error.key, error.place
        ('epochs', 'digits.yaml:2')
    """

    problems: tuple[Problem, ...]

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def at(cls, key: str, place: str | os.PathLike[str], message: str) -> ConfigError:
        """Return an error with one problem: its key, source location and message."""
        return cls([Problem(key, os.fspath(place), message)])

    @property
    def key(self) -> str:
        """The dotted path of the first problem's key."""
        return self.problems[0].key

    @property
    def place(self) -> str:
        """The source location of the first problem."""
        return self.problems[0].place


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the most similar known name, or lists all known names.

    Example:
        >>> did_you_mean("adamm", ["adam", "sgd"])
        'Did you mean adam?'
        >>> did_you_mean("zzz", ["adam", "sgd"])
        'Choose one of adam, sgd.'
    """
    names = sorted(set(known))
    near = nearest(name, names)
    if near:
        return f"Did you mean {near}?"
    return f"Choose one of {', '.join(names)}." if names else "No name is known."
