"""Data sources by name: the values of `data.name` that need no code.

Each returns `Data(train, held_out, facts)`; other arguments may refer to a fact, `${data.classes}`.
A source that fits preprocessing on its training data (the scale of a column, the names of classes,
an alphabet) returns it as `Data.fitted`, and takes it as its argument `fitted`: the run stores it,
and data read later are transformed by it.

Read next: `table.py`, which fits most; `ftrain/data/`, which reads the files.
"""

from ftrain.config.sources._data import Data
from ftrain.config.sources.arrays import arrays, digits, images
from ftrain.config.sources.table import csv
from ftrain.config.sources.text import text

__all__ = ["Data", "arrays", "csv", "digits", "images", "text"]
