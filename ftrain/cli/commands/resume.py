"""Go on with a run that was interrupted, from its newest checkpoint.

It ends with the bytes of a run that was never interrupted. A finished run goes on when it is given
more to do: ftrain resume runs/digits epochs=100
"""

from __future__ import annotations

import argparse

from ftrain.cli._runs import load_run, run_folder


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own."""
    parser.add_argument("run", help="the run's directory, such as runs/digits")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to its config.yaml"
    )


def run(options: argparse.Namespace) -> int:
    """Train on; the exit code says how it ended."""
    folder = run_folder(options.run)
    config = load_run(folder, options.overrides)
    from ftrain.cli._training import report  # noqa: PLC0415  # imports torch: after the keys are checked

    return report(config, resume=True)
