"""Compilation of steps in checks: errors of `ftrain.compile` become violations of a law.

Read next: `compiled.py`.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Hashable, Iterator
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._user_line import user_line
from ftrain.core._words import a_or_an
from ftrain.core.compile import Compiled
from ftrain.core.errors import (
    DonationError,
    ImpureFunctionError,
    TraceError,
    UnkeyedRandomError,
)
from ftrain.testing.laws._subject import Call, InapplicableError
from ftrain.testing.report import LawViolation

__all__ = ["line_of", "plain", "require_tensors", "untraceable"]

#: A line of user code in a message, as `core/_user_line.py` formats it.
_LINE = re.compile(r"^  (\S[^\n]*:\d+ in [^\n]*\n    [^\n]*)$", re.MULTILINE)

_CAUSES: dict[type[Exception], tuple[str, str]] = {
    TraceError: (
        "a compiled step is one graph of operators; while it is traced, tensors have no values.",
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
    """Return the function from which a step was compiled; return any other function unchanged."""
    return step.fn if isinstance(step, Compiled) else step


def require_tensors(call: Call) -> None:
    """Raise `InapplicableError` for an argument that `ftrain.compile` refuses, such as a NumPy array."""
    for path, leaf in zip(tree.paths(call.args), tree.leaves(call.args), strict=True):
        if not isinstance(leaf, torch.Tensor) and not isinstance(leaf, Hashable):
            raise InapplicableError(
                f"{call.path(path)}: expected a tensor, since a compiled step takes no other arrays, "
                f"got {a_or_an(type(leaf).__name__)}. Pass torch.as_tensor(...) of it."
            )


@contextlib.contextmanager
def untraceable(law: str, name: str) -> Iterator[None]:
    """Convert compile errors in a `with` block (code that cannot be traced) to violations of a law."""
    try:
        yield
    except tuple(_CAUSES) as error:
        cause, remedy = next(value for kind, value in _CAUSES.items() if isinstance(error, kind))
        raise LawViolation(
            law,
            f"{name} cannot be {_verb(error)}: {_first_line(error)}",
            line=line_of(error),
            cause=cause,
            remedy=_remedy(error) or remedy,
        ) from error


def _verb(error: BaseException) -> str:
    return "called with a donated state" if isinstance(error, DonationError) else "compiled"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].removesuffix(", here:").removesuffix(" Call:")


def _remedy(error: BaseException) -> str | None:
    """Return the remedy in an error message of `ftrain.compile`: its last paragraph."""
    paragraphs = str(error).strip().split("\n\n")
    if len(paragraphs) < 3 or _LINE.search(paragraphs[-1]):
        return None
    return " ".join(paragraphs[-1].split())


def line_of(error: BaseException) -> str | None:
    """Return the line of user code that an error message names, or that raised the error."""
    named = _LINE.search(str(error))
    if named is not None:
        return named.group(1)
    frames = traceback.extract_tb(error.__traceback__)
    line = user_line([frame for frame in frames if "ftrain/testing" not in frame.filename])
    return None if line.strip().startswith("(no frame") else line
