"""Detection of a Jupyter notebook, in which a progress bar is a widget or a rewritten line."""

from __future__ import annotations

import sys

__all__ = ["in_notebook"]


def in_notebook() -> bool:
    """Return True if the process is a notebook's kernel, such as that of Jupyter, Colab or VS Code.

    Example:
        >>> in_notebook()
        False
    """
    ipython = sys.modules.get("IPython")  # a kernel has imported IPython
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())
