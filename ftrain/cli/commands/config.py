"""Print the resolved configuration with every default; without a file, print all keys."""

from __future__ import annotations

import argparse

from ftrain.cli._no_code import add_no_code
from ftrain.config.keys import described
from ftrain.config.load import load
from ftrain.core._terminal import say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain config` to its parser."""
    parser.add_argument(
        "config", nargs="?", help="a .yaml, .json or .toml file; without it, list all keys"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="replace a value of the file"
    )
    parser.add_argument(
        "--names", action="store_true", help="list the registered names of components, by kind"
    )
    add_no_code(parser)


def run(options: argparse.Namespace) -> int:
    """Check a configuration and print it with every default; without a file, print all keys."""
    if options.names:
        return _names()
    if options.config is None:
        say(described())
        return 0
    config = load(options.config, options.overrides, code=not options.no_code)
    from ftrain.config.dump import dump  # noqa: PLC0415  # imports torch: after the keys are checked
    from ftrain.config.resolve import resolve  # noqa: PLC0415

    say(dump(resolve(config).config), end="")
    return 0


def _names() -> int:
    from ftrain.config.registry import KINDS, names  # noqa: PLC0415  # imports torch

    for kind in KINDS:
        say(f"{kind}: {', '.join(names(kind))}")
    return 0
