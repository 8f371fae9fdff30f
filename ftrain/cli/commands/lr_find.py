"""Find a learning rate by one short run in which the rate increases at each step.

The command writes a plot, but no run and no checkpoint.
"""

from __future__ import annotations

import argparse
import pathlib

from ftrain.cli._no_code import add_no_code
from ftrain.config.load import load
from ftrain.core._terminal import say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain lr-find` to its parser."""
    add = parser.add_argument
    add("config", help="a .yaml, .json or .toml file")
    add("overrides", nargs="*", metavar="key=value", help="replace a value of the file")
    add("--lowest", type=float, default=1e-7, metavar="RATE", help="the first rate; default: 1e-7")
    add("--highest", type=float, default=10.0, metavar="RATE", help="the last rate; default: 10")
    add(
        "--steps",
        type=int,
        default=100,
        metavar="N",
        help="steps from the first rate to the last; default: 100",
    )
    add("--out", type=pathlib.Path, help="the plot; default: lr_find.png in the run's directory")
    add_no_code(parser)


def run(options: argparse.Namespace) -> int:
    """Print the suggested learning rate, and the command that trains with it."""
    config = load(options.config, options.overrides, code=not options.no_code)
    from ftrain.cli._training import train_command  # noqa: PLC0415
    from ftrain.cli.find_rate import find_rate  # noqa: PLC0415  # imports torch: after the keys are checked

    found, picture = find_rate(config, options.lowest, options.highest, options.steps, options.out)
    say(found)
    say(f"picture: {picture}")
    if found.suggestion is None:
        return 1
    rate = f"optimizer.learning_rate={found.suggestion:.2g}"
    say(f"use it: {train_command(config, options.config, *options.overrides, rate)}")
    return 0
