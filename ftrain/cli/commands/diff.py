"""Find the first difference between two runs, or between two recorded traces.

    ftrain diff runs/first runs/second                # configuration, versions, data, steps, leaves
    ftrain diff a.trace b.trace --html diff.html      # the operator and its source line

Train with log_digests=1 to find the exact step. ftrain.testing.record writes a trace.
The exit code is 0 if there is no difference, and 1 if there is one.
"""

from __future__ import annotations

import argparse
import pathlib

from ftrain.config.errors import ConfigError
from ftrain.config.folders import run_folder
from ftrain.core._terminal import printable, say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain diff` to its parser."""
    add = parser.add_argument
    add("a", metavar="A", help="the directory of a run, or a trace")
    add("b", metavar="B", help="likewise")
    add("--html", type=pathlib.Path, metavar="FILE", help="write a page with every table")
    add(
        "--relative",
        type=float,
        default=0.0,
        metavar="R",
        help="traces: the largest relative distance of two tensors that counts as equal; default: 0",
    )


def run(options: argparse.Namespace) -> int:
    """Print the comparison of two runs or traces; return exit code 1 if they differ."""
    are_files = [pathlib.Path(name).is_file() for name in (options.a, options.b)]
    if are_files[0] != are_files[1]:
        raise ConfigError.at(
            "",
            f"{options.a} {options.b}",
            "expected two directories of runs, or two traces, got one of each. Name two of the "
            "same kind.",
        )
    if are_files[0]:
        from ftrain.cli.diff import diff_traces  # noqa: PLC0415  # imports torch

        found = diff_traces(pathlib.Path(options.a), pathlib.Path(options.b), options.relative)
    else:
        folders = [run_folder(name) for name in (options.a, options.b)]
        from ftrain.cli.diff import diff_runs  # noqa: PLC0415  # imports torch: after the runs are found

        found = diff_runs(*folders)
    say(found.text())
    if options.html is not None:
        title = printable(f"{options.a} and {options.b}", one_line=True)
        options.html.write_text(found.page(title), encoding="utf-8", errors="backslashreplace")
        say(f"page: {options.html}")
    return int(found.differs)
