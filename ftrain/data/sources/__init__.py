"""Built-in data sources, which a configuration selects by name with `data.name`.

Each source returns `Data(train, held_out, facts)`; other parts of the configuration may refer to a fact,
such as `${data.classes}`. A source that fits preprocessing on its training data (the scale of a column,
the names of classes, an alphabet) returns it as `Data.fitted` and accepts it as its argument `fitted`.
The run stores it, and data read later are transformed with it.

Read next: `table.py`, the source with the most preprocessing.
"""

from ftrain.data.sources._data import Data, Inputs
from ftrain.data.sources.arrays import arrays, arrays_inputs, digits, images, images_inputs
from ftrain.data.sources.table import csv, csv_inputs
from ftrain.data.sources.text import text, text_inputs

__all__ = [
    "Data",
    "Inputs",
    "arrays",
    "arrays_inputs",
    "csv",
    "csv_inputs",
    "digits",
    "images",
    "images_inputs",
    "text",
    "text_inputs",
]
