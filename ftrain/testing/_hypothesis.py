"""Check that Hypothesis, an optional package, is installed."""

from __future__ import annotations

import importlib.util

__all__ = ["require_hypothesis"]


def require_hypothesis(who: str) -> None:
    """Raise unless Hypothesis is installed.

    Raises:
        ImportError: it is missing; the message says how to install it.
    """
    if importlib.util.find_spec("hypothesis") is None:
        raise ImportError(
            f"{who} needs hypothesis, which is not installed. Run `pip install 'ftrain[testing]'`.",
            name="hypothesis",
        )
