"""Write a commented configuration and a model that train without changes."""

from __future__ import annotations

import argparse
import importlib.resources
import os
import pathlib

from ftrain.core._terminal import say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain init` to its parser."""
    parser.add_argument(
        "folder", nargs="?", default=".", help="directory to write to; default: the current one"
    )


def run(options: argparse.Namespace) -> int:
    """Write `config.yaml` and `model.py`; if one of them exists, write neither."""
    folder = pathlib.Path(options.folder)
    skeleton = importlib.resources.files("ftrain.cli") / "skeleton"
    files = {"config.yaml": folder / "config.yaml", "model.py.txt": folder / "model.py"}
    there = [str(path) for path in files.values() if os.path.lexists(path)]
    if there:
        say(
            f"ftrain init: {' and '.join(there)} exist already. Name another folder: ftrain "
            "init FOLDER",
            error=True,
        )
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        with path.open("x", encoding="utf-8") as file:
            file.write(skeleton.joinpath(name).read_text(encoding="utf-8"))
        say(f"wrote {path}")
    say(f"now: ftrain train {files['config.yaml']}")
    return 0
