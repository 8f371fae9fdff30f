"""Data that need no code: what `data.name` can be without a file of one's own.

Each returns `Data(train, held_out, facts)`; arguments elsewhere may ask for a fact, `${data.classes}`.
One that learns something from its training data (the scale of a column, the names of classes, an
alphabet) tells it as `Data.fitted`, and takes it as its argument `fitted`: the run keeps it, and what it
reads later is read as the training data was.

Read next: `table.py`, which learns most; `ftrain/data/`, which does the reading.
"""

from ftrain.config.sources._data import Data
from ftrain.config.sources.arrays import arrays, digits, images
from ftrain.config.sources.table import csv
from ftrain.config.sources.text import text

__all__ = ["Data", "arrays", "csv", "digits", "images", "text"]
