"""Typed configuration, read from a file and the command line, and the run that it describes.

    from ftrain.config.run import train

    config = load("digits.yaml", ["epochs=3"])     # defaults < file < key.path=value
    result = train(config)                         # in runs/digits, as `ftrain train` does
    outputs = load_run("runs/digits").predict(x)   # with the best weights

Components (models, losses, optimizers, ...) are registered by name with `register`, or given by
import path: `model.py:Net`. Every mistake is a `ConfigError` that names the key and its source
location. Read next: `schema.py`, the keys; `build.py` and `run.py`, which build a run from a
configuration; `trained.py`, which loads a trained run.
"""

from typing import TYPE_CHECKING, Any

from ftrain.config.errors import ConfigError, Problem
from ftrain.config.load import load
from ftrain.config.needs import Needs
from ftrain.config.registry import register
from ftrain.config.schema import Config

if TYPE_CHECKING:
    from ftrain.config.trained import Trained, load_run
else:

    def __getattr__(name: str) -> Any:
        """Import `load_run` and `Trained`, which import torch, on first access."""
        if name not in ("Trained", "load_run"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ftrain.config import trained  # noqa: PLC0415  # imports torch: a second

        return getattr(trained, name)


__all__ = ["Config", "ConfigError", "Needs", "Problem", "Trained", "load", "load_run", "register"]
