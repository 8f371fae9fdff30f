"""Resume an interrupted run from its newest checkpoint.

The resumed run ends with the same bytes as an uninterrupted one. A complete run can be trained longer:

    ftrain resume runs/digits epochs=100
"""

from __future__ import annotations

import argparse
import shlex

from ftrain.cli._no_code import add_no_code
from ftrain.config.folders import run_config, run_folder
from ftrain.core._terminal import say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain resume` to its parser."""
    parser.add_argument("run", help="the run's directory, such as runs/digits")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to its config.yaml"
    )
    add_no_code(parser)


def run(options: argparse.Namespace) -> int:
    """Resume a run from its newest checkpoint, and return the exit code."""
    folder = run_folder(options.run)
    config = run_config(folder, options.overrides, code=not options.no_code)
    from ftrain.checkpoint import CheckpointMismatchError  # noqa: PLC0415  # imports torch: after the keys are checked
    from ftrain.cli._training import report  # noqa: PLC0415

    try:
        return report(config, resume=True)
    except CheckpointMismatchError as error:
        say(_refused(str(folder), options.overrides, str(error)), error=True)
        return 1


def _refused(folder: str, overrides: list[str], says: str) -> str:
    """Return the message for a checkpoint whose leaves differ from those of the configured run."""
    changes = shlex.join(overrides)
    another = shlex.join([f"{folder}/config.yaml", *overrides, f"output_dir={folder}-2"])
    differences = [
        line for line in says.replace("`like`", "this run").splitlines() if line[:2] == "  "
    ]
    return "\n".join(
        [
            f"ftrain resume: {changes or 'the configuration'} does not fit the checkpoint of {folder}",
            *differences,
            f"No file was changed. For another model begin a new run: ftrain train {another}",
        ]
    )
