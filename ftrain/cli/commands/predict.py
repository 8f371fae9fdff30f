"""Print one prediction per sample (table row, image, array, or character of a text), in order.

    ftrain predict runs/irises data.path=new.csv --out predictions.csv
    ftrain predict runs/photos data.path=folder       # images at any depth, or one image
    ftrain predict runs/arrays data.path=new.npz
    ftrain predict runs/book data.path=new.txt        # the likeliest next character at each place

The prediction of a class is its name and the probability of each class; that of a number is in the units
of the training data. The file needs no targets. For runs on other data use
`ftrain.config.load_run(RUN).predict(x)` in Python.
"""

from __future__ import annotations

import argparse
import csv
import io
import pathlib
from typing import Any

from ftrain.cli._no_code import add_no_code
from ftrain.config.errors import ConfigError
from ftrain.config.folders import run_folder
from ftrain.core._terminal import say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain predict` to its parser."""
    add = parser.add_argument
    add("run", help="the run's directory, such as runs/irises")
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="data.path=FILE, with the samples; and other changes to its config.yaml, for this command "
        "only",
    )
    add("--checkpoint", default="best", help="best (default), latest, or a checkpoint's directory")
    add("--out", type=pathlib.Path, metavar="FILE", help="a CSV file to write; default: print")
    add_no_code(parser)


def run(options: argparse.Namespace) -> int:
    """Print the predictions of a run, or write them to a CSV file."""
    folder = run_folder(options.run)
    from ftrain.cli.predict import predict  # noqa: PLC0415  # imports torch: after the run is found
    from ftrain.config.trained import load_run  # noqa: PLC0415

    found = predict(
        load_run(folder, options.checkpoint, options.overrides, code=not options.no_code)
    )
    text = _csv(found)
    if options.out is None:
        say(text, end="", raw=True)
        return 0
    try:
        options.out.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        says = f"cannot be written to: {error.strerror or error}. Choose another file."
        raise ConfigError.at("", f"--out {options.out}", says) from None
    rows = len(next(iter(found.values())))
    say(f"{rows} rows: {options.out}")
    return 0


def _csv(columns: dict[str, list[Any]]) -> str:
    """Return columns as CSV text: a header, then one line per row; floats have nine digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{one:.9g}" if isinstance(one, float) else one for one in row])
    return text.getvalue()
