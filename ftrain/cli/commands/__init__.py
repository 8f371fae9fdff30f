"""The commands: each is a module of its name, with `arguments(parser)` and `run(options)`."""

from __future__ import annotations

__all__ = ["COMMANDS"]

#: Each command and what it does, in the order of a first day.
COMMANDS = {
    "init": "write a commented configuration and a model that train as they are",
    "train": "train what a configuration says",
    "resume": "go on with a run that was interrupted",
    "eval": "evaluate a run on its held-out data",
    "predict": "predict the rows of a table",
    "plot": "draw the curves of one run or several",
    "runs": "list the runs in a directory",
    "config": "print what would run, or every key there is",
    "lr-find": "search for a learning rate",
}
