"""Functions shared by the loggers for services such as MLflow: imports, hyper-parameters, errors."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ftrain.loop.callback import Notify

__all__ = ["flattened", "need", "refused"]


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


def refused(who: str, error: Exception, remedy: str) -> tuple[Notify]:
    """Return a notice about a service that refused a run's log; the run continues without that log.

    Example:
        >>> refused("WandbLogger", ConnectionError("no network"), "Write mode='offline'.")[0].message
        "WandbLogger raised ConnectionError: no network; nothing is logged there. Write mode='offline'."
    """
    first = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
    says = f"{who} raised {type(error).__name__}: {first}; nothing is logged there. {remedy}"
    return (Notify(says),)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return nested hyper-parameters as one dict with dotted names, without `None` values.

    Example:
        >>> flattened({"seed": 0, "ema": None, "optimizer": {"name": "sgd"}, "widths": [8, 8]})
        {'seed': 0, 'optimizer.name': 'sgd', 'widths': '[8, 8]'}
    """
    found: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{name}.")
        elif value is not None:
            plain = isinstance(value, (bool, int, float, str))
            found[f"{prefix}{name}"] = value if plain else str(value)
    return found
