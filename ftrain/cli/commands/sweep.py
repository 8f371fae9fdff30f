"""Train many seeds and hyper-parameters at once, as one compiled step, and draw the results.

    ftrain sweep config.yaml optimizer.learning_rate=1e-4..1e-1:16 seed=0..3

Members of the sweep are all combinations of the values:

    1e-4..1e-1:16          16 values with equal ratios if the last is 10 times the first or more, else
                           with equal differences
    1e-4..1e-1:16:linear   16 values with equal differences
    0..3                   whole numbers, the last one included
    0.1,0.2,0.5            these values

`seed` and numbers of the optimizer can differ between members; other keys hold for all. All members get
the same batches, in the order of the configuration's own seed. A member whose loss is not finite stops.
Checkpoints, early stopping and callbacks of the configuration are not used. The command writes a picture
and a table of the members, but no run.
"""

from __future__ import annotations

import argparse
import pathlib

from ftrain.cli._no_code import add_no_code
from ftrain.cli._sweep_axes import sweep_axes
from ftrain.config.load import load
from ftrain.core._terminal import say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain sweep` to its parser."""
    add = parser.add_argument
    add("config", help="a .yaml, .json or .toml file")
    add(
        "overrides",
        nargs="*",
        metavar="key=values",
        help="values to sweep over, and replaced values of the file",
    )
    add(
        "--metric",
        default="loss",
        metavar="NAME",
        help="the metric that ranks members; default: loss",
    )
    add("--mode", choices=("min", "max"), default="min", help="which is better; default: min")
    add("--chunk-size", type=int, metavar="N", help="members computed at a time, to save memory")
    add("--out", type=pathlib.Path, help="the picture; default: sweep.png in the run's directory")
    add_no_code(parser)


def run(options: argparse.Namespace) -> int:
    """Train the members of a sweep; print the best member and the command that trains it alone."""
    axes, overrides = sweep_axes(options.overrides)
    for key, values in axes.items():  # checks each value before the training
        for value in values:
            load(options.config, [*overrides, f"{key}={value!r}"])
    optimizers = [f"{key}={values[0]!r}" for key, values in axes.items() if key != "seed"]
    config = load(options.config, [*overrides, *optimizers], code=not options.no_code)
    from ftrain.cli._training import train_command  # noqa: PLC0415
    from ftrain.cli.sweep import sweep  # noqa: PLC0415  # imports torch: after the keys are checked

    found = sweep(config, axes, options.metric, options.mode, options.chunk_size, options.out)
    say(found)
    chosen = [f"{key}={value!r}" for key, value in found.best_values.items()]
    say(f"train it: {train_command(config, options.config, *overrides, *chosen)}")
    return 0
