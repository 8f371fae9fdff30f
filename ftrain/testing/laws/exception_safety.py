"""Stub."""

from typing import Any


def check_exception_safety(subject, batches=(), *, state=None, seed=0, args=None, most=50, model=None) -> Any:  # type: ignore
    """Stub."""
    raise NotImplementedError
