"""Test for a Jupyter notebook, in which a progress bar is a widget or a rewritten line."""

from __future__ import annotations

import sys

__all__ = ["in_notebook"]


def in_notebook() -> bool:
    """Return True in the kernel of a notebook: Jupyter, Colab, Kaggle, an editor's notebook.

    Example:
        >>> in_notebook()
        False
    """
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())
