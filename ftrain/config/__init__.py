"""Configuration: one typed schema, a file, the command line, and what they build.

    from ftrain.config.run import train

    config = load("digits.yaml", ["epochs=3"])     # defaults < file < key.path=value
    result = train(config)                         # in runs/digits, as `ftrain train` does
    outputs = load_run("runs/digits").predict(x)   # with the best weights

What is built by name is registered with `register`, or named by import path: `model.py:Net`. Every
mistake is a `ConfigError` that names key and place. Read next: `schema.py`, for the
keys; `build.py` and `run.py`, for what is made of them; `trained.py`, for what comes of it.
"""

from typing import TYPE_CHECKING, Any

from ftrain.config.errors import ConfigError, Problem
from ftrain.config.load import load
from ftrain.config.registry import register
from ftrain.config.schema import Config

if TYPE_CHECKING:
    from ftrain.config.trained import Trained, load_run
else:

    def __getattr__(name: str) -> Any:
        """`load_run` and `Trained`, when they are asked for: a configuration does not wait for torch."""
        if name not in ("Trained", "load_run"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ftrain.config import trained  # noqa: PLC0415  # it imports torch: a second

        return getattr(trained, name)


__all__ = ["Config", "ConfigError", "Problem", "Trained", "load", "load_run", "register"]
