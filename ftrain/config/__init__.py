"""Configuration: one typed schema, a file, the command line, and what they build.

    from ftrain.config.run import train

    config = load("digits.yaml", ["epochs=3"])     # defaults < file < key.path=value
    result = train(config)                         # in runs/digits, as `ftrain train` does

What is built by name is registered with `register`, or named by import path: `model.py:Net`. Every
mistake is a `ConfigError` that names key and place. Read next: `schema.py`, for the
keys; `build.py` and `run.py`, for what is made of them.
"""

from ftrain.config.errors import ConfigError, Problem
from ftrain.config.load import load
from ftrain.config.registry import register
from ftrain.config.schema import Config

__all__ = ["Config", "ConfigError", "Problem", "load", "register"]
