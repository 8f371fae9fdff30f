"""Command-line option `--no-code`, which refuses a configuration that names user code."""

from __future__ import annotations

import argparse

__all__ = ["add_no_code"]


def add_no_code(parser: argparse.ArgumentParser) -> None:
    """Add the option `--no-code` to the parser of a command."""
    parser.add_argument(
        "--no-code",
        action="store_true",
        help="refuse names that are not built in, for a run or configuration of somebody else, which "
        "may name any code",
    )
