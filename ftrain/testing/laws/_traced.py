"""Steps in compiled form, with the errors of `ftrain.compile` as violations of a law.

Read next: `compiled.py`.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

from ftrain.core._user_line import user_line
from ftrain.core.compile import Compiled
from ftrain.core.errors import (
    DonationError,
    ImpureFunctionError,
    TraceError,
    UnkeyedRandomError,
)
from ftrain.testing.report import LawViolation

__all__ = ["plain", "untraceable"]

_CAUSES: dict[type[Exception], tuple[str, str]] = {
    TraceError: (
        "Python needs the value of a tensor, which a compiled step does not have yet.",
        "Write torch.where or ftrain.cond instead of a branch on a value; return values as metrics.",
    ),
    ImpureFunctionError: (
        "the step writes to a tensor that it did not create.",
        "Return the new value as a part of the state.",
    ),
    UnkeyedRandomError: (
        "a compiled step would draw the same numbers at each call.",
        "Draw from a key in the state: ftrain.random.",
    ),
    DonationError: (
        "the new state does not fit the memory of the old one, or leaves share memory.",
        "Keep the layout of the state from step to step (check_fixpoint), and give each leaf its own "
        "memory.",
    ),
}


def plain(step: Any) -> Any:
    """Return the function that a compiled step was made from; another function itself."""
    return step._fn if isinstance(step, Compiled) else step


@contextlib.contextmanager
def untraceable(law: str, name: str) -> Iterator[None]:
    """Turn the errors by which `ftrain.compile` refuses a function into violations of a law."""
    try:
        yield
    except tuple(_CAUSES) as error:
        cause, remedy = next(value for kind, value in _CAUSES.items() if isinstance(error, kind))
        raise LawViolation(
            law,
            f"{name} cannot be compiled: {error}",
            line=line_of(error),
            cause=cause,
            remedy=remedy,
        ) from error


def line_of(error: BaseException) -> str | None:
    """Return the line of user code that raised an error, or that an inner error names."""
    frames = traceback.extract_tb(error.__traceback__)
    line = user_line([frame for frame in frames if "ftrain/testing" not in frame.filename])
    return None if line.strip().startswith("(no frame") else line
