"""Exceptions and warnings that ftrain raises besides Python's own `ValueError` and `TypeError`."""

from __future__ import annotations

from typing import Any

__all__ = [
    "ArgumentError",
    "CompilerMissingError",
    "DataError",
    "DonatedStateError",
    "DonationError",
    "ImpureFunctionError",
    "NonFiniteError",
    "RecompileWarning",
    "TraceError",
    "UnkeyedRandomError",
]


class ArgumentError(ValueError):
    """Error for an invalid argument, whose name callers can read instead of parsing the message.

    Args:
        argument: the name of the argument.
        problem: what was expected and received, without a period.
        remedy: a sentence that says what to write instead.

    Attributes:
        argument: the name of the argument.
        problem: what was expected and received.
        remedy: what to write instead.

    Example:
        >>> error = ArgumentError("rate", "expected a number above 0, got -1", "Write rate=0.1.")
        >>> print(error)
        rate: expected a number above 0, got -1. Write rate=0.1.
        >>> error.argument, error.advice
        ('rate', 'expected a number above 0, got -1. Write rate=0.1.')
    """

    def __init__(self, argument: str, problem: str, remedy: str) -> None:
        super().__init__(argument, problem, remedy)  # the arguments of a pickled copy
        self.argument, self.problem, self.remedy = argument, problem, remedy

    @property
    def advice(self) -> str:
        """The problem and the remedy, without the name of the argument."""
        return f"{self.problem}. {self.remedy}"

    def __str__(self) -> str:
        return f"{self.argument}: {self.advice}"


class ImpureFunctionError(RuntimeError):
    """Error for a function that should be pure, but writes to an object that it did not create.

    Args:
        what: what happened, without a period.
        remedy: a sentence with the remedy; by default, `what` is the whole message.
        tensor: the tensor that was written to, if the line of the write is not known.
    """

    def __init__(self, what: str, remedy: str = "", tensor: Any = None) -> None:
        super().__init__(f"{what}. {remedy}" if remedy else what)
        self._parts, self.tensor = (what, remedy), tensor

    def at(self, line: str) -> ImpureFunctionError:
        """Return this error with the line of user code that made the write."""
        what, remedy = self._parts
        located = ImpureFunctionError(f"{what}, here:\n\n{line}\n\n{remedy}")
        for note in getattr(self, "__notes__", ()):
            located.add_note(note)
        return located


class UnkeyedRandomError(RuntimeError):
    """Error for a random operation that cannot draw from a key; it names the operation and a remedy."""


class NonFiniteError(FloatingPointError):
    """Error for an infinite or NaN gradient under `nonfinite="raise"`."""


class TraceError(RuntimeError):
    """Error for a function that reads the value of a tensor while it is traced."""


class DonationError(ValueError):
    """Error for a state that cannot be donated: no output fits it, or its tensors share memory."""


class DonatedStateError(RuntimeError):
    """Error for the use of a state after its memory was donated to the next one."""


class CompilerMissingError(RuntimeError):
    """Error for a missing C++ compiler."""


class RecompileWarning(UserWarning):
    """Warning that a function is compiled again because no earlier program fits its arguments."""


class DataError(ValueError):
    """Error for a damaged or unexpected data file; it names the location and a remedy."""
