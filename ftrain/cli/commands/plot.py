"""Draw the curves of one or several runs, as a picture or an interactive page.

ftrain plot runs/first                        # runs/first/curves.png
ftrain plot runs/first runs/second            # curves.png, with both
ftrain plot runs/* --out comparison.html      # a page that needs no other file

A directory with the metrics.jsonl of a Trainer in Python is a run as well.
"""

from __future__ import annotations

import argparse
import pathlib

from ftrain.config.errors import ConfigError
from ftrain.config.folders import run_folder
from ftrain.core._terminal import say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain plot` to its parser."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="directories of runs")
    add("--out", type=pathlib.Path, help="a .png, .svg, .pdf or .html file")
    add(
        "--metric",
        action="append",
        metavar="NAME",
        help="draw only this metric; may be given several times",
    )
    add("--x", choices=("step", "epoch", "time"), default="step", help="the horizontal axis")
    add(
        "--smooth",
        type=float,
        default=0.0,
        metavar="W",
        help="smoothing of training curves, from 0 to below 1",
    )
    add("--dark", action="store_true", help="draw on a dark background")


def run(options: argparse.Namespace) -> int:
    """Draw the curves of runs to a file, and print the path of the file."""
    folders = [_with_log(name) for name in options.runs]
    out = options.out or (folders[0] if len(folders) == 1 else pathlib.Path()) / "curves.png"
    # Not for the default path, which may be a link to a directory outside of the run.
    if options.out is not None and out.is_dir():
        out /= "curves.png"
    from ftrain.loop import plots  # noqa: PLC0415  # imports torch and matplotlib: after the runs are found

    try:
        if out.suffix.lower() == ".html":
            plots.page(folders, out)
        else:
            plots.curves(
                folders,
                out,
                metrics=options.metric,
                x=options.x,
                smooth=options.smooth,
                dark=options.dark,
            )
    except OSError as error:
        says = f"cannot be written to: {error.strerror or error}. Choose another file."
        raise ConfigError.at("", out, says) from None
    say(out)
    return 0


def _with_log(name: str) -> pathlib.Path:
    """Return the path of a run's directory; it must contain a log, but need not have a configuration."""
    folder = pathlib.Path(name)
    folder = folder.parent if folder.name == "metrics.jsonl" else folder
    return folder if (folder / "metrics.jsonl").exists() else run_folder(name)
