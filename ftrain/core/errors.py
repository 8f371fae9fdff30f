"""Everything that ftrain raises beside Python's own `ValueError` and `TypeError`."""

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
    """A function that must be pure has written to something that is not its own."""


class UnkeyedRandomError(RuntimeError):
    """A random operation whose numbers cannot come from a key; says which, and what to write."""


class NonFiniteError(FloatingPointError):
    """A gradient is infinite or NaN, and the step was told to raise."""


class TraceError(RuntimeError):
    """A function asks for the value of a tensor while it is being traced."""


class DonationError(ValueError):
    """The state cannot be donated: the step's output does not fit it, or its memory is shared."""


class DonatedStateError(RuntimeError):
    """A state is used after its memory was given to the next one."""


class CompilerMissingError(RuntimeError):
    """No C++ compiler was found."""


class RecompileWarning(UserWarning):
    """A compiled function is compiled again because its arguments changed in kind."""


class DataError(ValueError):
    """A file of data is damaged, or not what it was said to be; says where, and what to do."""
