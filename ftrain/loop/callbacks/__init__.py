"""The callbacks that come with ftrain.

What a person sees:

    ProgressBar()                   a bar in a terminal, a line now and then elsewhere
    ConsoleLogger()                 rows of the log as lines
    FileLogger("train.log")         a journal of all that happened

Logs:

    JSONLLogger("metrics.jsonl")    one object a row
    CSVLogger("metrics.csv")        a table

When a run ends and what it saves:

    EarlyStopping(patience)         ends a run that no longer gets better
    Checkpointing(best=3)           saves every n steps or minutes, and the best k

What else is measured:

    Throughput()                    steps, samples and tokens a second

Start reading at `throughput.py`, the shortest; `callback.py` has the protocol.
"""

from ftrain.loop.callbacks.checkpointing import Checkpointing
from ftrain.loop.callbacks.console import ConsoleLogger
from ftrain.loop.callbacks.csv import CSVLogger
from ftrain.loop.callbacks.early_stopping import EarlyStopping
from ftrain.loop.callbacks.journal import FileLogger
from ftrain.loop.callbacks.jsonl import JSONLLogger
from ftrain.loop.callbacks.progress import ProgressBar
from ftrain.loop.callbacks.throughput import Throughput

__all__ = [
    "CSVLogger",
    "Checkpointing",
    "ConsoleLogger",
    "EarlyStopping",
    "FileLogger",
    "JSONLLogger",
    "ProgressBar",
    "Throughput",
]
