"""Commands of the command line, each a module with `arguments(parser)` and `run(options)`."""

from __future__ import annotations

__all__ = ["COMMANDS"]

#: Each command and its purpose, in the order of first use.
COMMANDS = {
    "init": "write a commented configuration and a model that train without changes",
    "train": "train the run that a configuration describes",
    "resume": "resume an interrupted run",
    "eval": "evaluate a run on its held-out data",
    "predict": "print predictions for rows of a table, images, arrays or a text",
    "sample": "continue a prompt with a run that was trained on a text",
    "plot": "draw the curves of one run or several",
    "diff": "find the first difference between two runs or traces",
    "runs": "list the runs in a directory",
    "config": "print a configuration with every default, or all keys",
    "bench": "measure the speed and the memory of a training step",
    "lr-find": "search for a learning rate",
    "sweep": "train many seeds and hyper-parameters in one graph",
}
