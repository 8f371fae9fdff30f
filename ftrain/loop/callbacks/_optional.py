"""Import of optional packages."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["need"]


def need(module: str, who: str, package: str) -> Any:
    """Import an optional package; if it is missing, raise an error with the command to install it.

    Raises:
        ImportError: the module is missing; the message says how to install it.

    Example:
        >>> need("no_such_module", "WandbLogger", "wandb")
        Traceback (most recent call last):
        ImportError: WandbLogger needs wandb, which is not installed. Run `pip install wandb`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and not module.startswith(error.name.partition(".")[0]):
            found = f"cannot be imported ({error})" if error.name != package else "is not installed"
        else:
            found = "is not installed"
        raise ImportError(
            f"{who} needs {package}, which {found}. Run `pip install {package}`."
        ) from error
