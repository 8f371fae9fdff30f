"""Stub."""

from typing import Any


def check_vmap(subject, batches=(), *, state=None, seed=0, args=None, states=None, relative=None, compile=None) -> Any:  # type: ignore
    """Stub."""
    raise NotImplementedError
