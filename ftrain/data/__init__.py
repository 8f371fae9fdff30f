"""Data: what a run reads, as a pure function of (seed, epoch, position).

`Loader` makes batches, `Cursor` says where one stands; `samplers.py` holds the orders.
"""

from ftrain.data._fetch import sample_keys
from ftrain.data.cursor import Cursor
from ftrain.data.loader import Loader
from ftrain.data.samplers import ByLength, Mixed, Sampler, Sequential, Shuffled, Weighted

__all__ = [
    "ByLength",
    "Cursor",
    "Loader",
    "Mixed",
    "Sampler",
    "Sequential",
    "Shuffled",
    "Weighted",
    "sample_keys",
]
