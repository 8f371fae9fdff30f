"""Evaluate a run on its held-out data.

On other data: ftrain eval runs/prices data.path=new.csv
"""

from __future__ import annotations

import argparse
import json

from ftrain.cli._no_code import add_no_code
from ftrain.config.folders import run_config, run_folder
from ftrain.core._terminal import say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain eval` to its parser."""
    add = parser.add_argument
    add("run", help="the run's directory, such as runs/digits")
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to its config.yaml, for this command only",
    )
    add("--checkpoint", default="best", help="best (default), latest, or a checkpoint's directory")
    add("--json", action="store_true", help="print the result as JSON")
    add_no_code(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate a checkpoint of a run, and print the metrics over the held-out data."""
    folder = run_folder(options.run)
    config = run_config(folder, options.overrides, code=not options.no_code)
    from ftrain.cli._training import as_given  # noqa: PLC0415  # imports torch: after the keys are checked
    from ftrain.cli.evaluate import evaluate  # noqa: PLC0415  # as above

    path, (result, *averages) = evaluate(config, folder, options.checkpoint)
    if options.json:
        named = {each.split.removeprefix("eval/"): each.to_json() for each in averages}
        say(json.dumps({**result.to_json(), "checkpoint": str(path), **named}))
    else:
        say(as_given(path, folder), result, *averages)
    return 0
