"""Exceptions and warnings of ftrain beside Python's own `ValueError` and `TypeError`."""

from __future__ import annotations

__all__ = [
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


class ImpureFunctionError(RuntimeError):
    """Error for a function that must be pure and writes to an object that it did not create."""


class UnkeyedRandomError(RuntimeError):
    """Error for a random operation that cannot draw from a key; names the operation and a remedy."""


class NonFiniteError(FloatingPointError):
    """Error for an infinite or NaN gradient under `nonfinite="raise"`."""


class TraceError(RuntimeError):
    """Error for a function that reads the value of a tensor while it is traced."""


class DonationError(ValueError):
    """Error for a state that cannot be donated: the output does not fit it, or memory is shared."""


class DonatedStateError(RuntimeError):
    """Error for the use of a state after its memory was donated to the next one."""


class CompilerMissingError(RuntimeError):
    """Error for a missing C++ compiler."""


class RecompileWarning(UserWarning):
    """Warning that a function is compiled again because its arguments changed in kind."""


class DataError(ValueError):
    """Error for a damaged or unexpected data file; names the place and a remedy."""
