"""Definition of a gallery entry, and the lists of all entries.

@broken("keyed", says="global generator", seen="https://github.com/pytorch/rl/issues/2313")
def dropout_from_the_global_generator() -> Case:
    '''Dropout draws its mask from torch's global generator.'''
    ...
    return Case(step, batches(), state=state)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["BROKEN", "CORRECT", "Broken", "Case", "Correct", "broken", "correct", "load"]

MODULES = (
    "accumulation",
    "compiled",
    "correct",
    "correct_recipes",
    "determinism",
    "evaluation",
    "exceptions",
    "fixpoint",
    "gradients",
    "process",
    "purity",
    "randomness",
    "resume",
    "skip",
    "transforms",
)


class Case(NamedTuple):
    """Arguments of a check: `check(subject, batches, state=state, **options)`."""

    subject: Any
    batches: Sequence[Any]
    state: Any = None
    options: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Broken:
    """A mistake.

    Attributes:
        law: the name of the check that finds it, without `check_`.
        says: regular expressions, all of which the message must match: what is wrong, and the remedy.
        seen: the public thread in which somebody made the mistake.
        make: builds the case; its docstring is the mistake in one line.
        compiled: regular expressions for the message when the step is compiled first (the law's, or
            that of `ftrain.compile`, which refuses some mistakes); empty if it is not compiled.
        compiled_law: the check of the compiled step, which no longer sees what its trace has fixed.
    """

    law: str
    says: tuple[str, ...]
    seen: str
    make: Callable[[], Case]
    compiled: tuple[str, ...]
    compiled_law: str

    @property
    def name(self) -> str:
        return self.make.__name__


@dataclass(frozen=True)
class Correct:
    """A step without a mistake.

    Attributes:
        laws: the laws that apply to it.
        make: builds the case.
        options: further options of some checks, by law.
    """

    laws: tuple[str, ...]
    make: Callable[[], Case]
    options: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        return self.make.__name__


BROKEN: list[Broken] = []
CORRECT: list[Correct] = []


def broken(
    law: str,
    *,
    says: str | Sequence[str],
    seen: str,
    compiled: str | Sequence[str] = (),
    compiled_law: str | None = None,
) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a mistake."""

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        of_compiled = _patterns(compiled), compiled_law or law
        BROKEN.append(Broken(law, _patterns(says), seen, make, *of_compiled))
        return make

    return register


def correct(
    *laws: str, **options: Mapping[str, Any]
) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a step without a mistake; `skip={"free": ["scale"]}` are options of that check."""

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        CORRECT.append(Correct(laws, make, options))
        return make

    return register


def load() -> None:
    """Import the modules that register entries."""
    for name in MODULES:
        importlib.import_module(f"{__package__}.{name}")


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
