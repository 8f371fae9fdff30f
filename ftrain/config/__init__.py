"""Configuration: one typed schema, a file, the command line, and what they build.

    config = load("digits.yaml", ["epochs=3"])     # defaults < file < key.path=value
    print(dump(config))                            # what would run, every default written out
    result = build(config).fit()

What is built by name is registered with `register`, or named by import path: `model.py:Net`. Every
mistake is a `ConfigError` that names key and place. Read next: `schema.py`, for the keys.
"""

from ftrain.config.errors import ConfigError, Problem
from ftrain.config.load import load
from ftrain.config.registry import register
from ftrain.config.schema import Config

__all__ = ["Config", "ConfigError", "Problem", "load", "register"]
