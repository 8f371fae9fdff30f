"""Continue a prompt with a run that was trained on a text (`data: text`).

    ftrain sample runs/book "Once upon a time" --length 500

The same seed writes the same text.
"""

from __future__ import annotations

import argparse

from ftrain.cli._no_code import add_no_code
from ftrain.config.folders import run_folder
from ftrain.core._terminal import say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain sample` to its parser."""
    add = parser.add_argument
    add("run", help="the run's directory, such as runs/book")
    add("prompt", nargs="?", default="", help="the text to continue; default: a new line")
    add("--length", type=int, default=300, metavar="N", help="new characters; default: 300")
    add(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="1 (default): draw by the model's probabilities; below 1: prefer likelier characters; "
        "0: take the likeliest",
    )
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest characters only")
    add("--seed", type=int, default=0, metavar="N", help="seed of the draws; default: 0")
    add("--checkpoint", default="best", help="best (default), latest, or a checkpoint's directory")
    add_no_code(parser)


def run(options: argparse.Namespace) -> int:
    """Print a prompt, followed by the text that the run's model generates after it."""
    folder = run_folder(options.run)
    from ftrain.cli.sample import sample  # noqa: PLC0415  # imports torch: after the run is found
    from ftrain.config.trained import load_run  # noqa: PLC0415

    text = sample(
        load_run(folder, options.checkpoint, code=not options.no_code),
        options.prompt,
        length=options.length,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
    )
    say(text, raw=True)
    return 0
