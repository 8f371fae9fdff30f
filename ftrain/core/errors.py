"""Exceptions and warnings that ftrain raises besides Python's own `ValueError` and `TypeError`."""

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
    """Error for a function that must be pure but writes to an object that it did not create."""


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
