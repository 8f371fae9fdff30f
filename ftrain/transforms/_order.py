"""Check that a step is transformed before it is compiled, not after."""

from __future__ import annotations

from typing import Any

from ftrain.core.compile import Compiled

__all__ = ["check_not_compiled"]


def check_not_compiled(name: str, step: Any) -> None:
    """Raise if a step is compiled already; compile the result of the transform instead.

    Raises:
        TypeError: `step` is compiled.
    """
    if isinstance(step, Compiled):
        raise TypeError(
            f"{name}: expected a step that is not compiled, got a compiled one. Transform first and "
            f"compile last: ftrain.compile({name}(...))."
        )
