"""Handling of a closed standard output, as with `ftrain runs | head` or Ctrl-C in `... | tee log`."""

from __future__ import annotations

import os
import sys

__all__ = ["leave_stdout"]


def leave_stdout() -> None:
    """Redirect standard output to the null device, so that Python reports no closed pipe at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
