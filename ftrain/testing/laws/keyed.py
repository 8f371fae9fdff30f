"""Stub."""

from typing import Any


def check_keyed(subject, batches=(), *, state=None, seed=0, args=None, key=None) -> Any:  # type: ignore
    """Stub."""
    raise NotImplementedError
