"""Data: what a run reads, as a pure function of (seed, epoch, position).

Batches, with a cursor behind each that can be saved, and entered anywhere at no cost:

    Loader(dataset, batch_size, seed=0)    data with length and items: arrays, lists, map-style datasets
    Stream(source, batch_size)             what can only be iterated over; loaders from elsewhere
    Cursor                                 where a run stands: seed, epoch, position
    sample_keys(seed, epoch, positions)    the keys that samples are augmented with

Orders, for `Loader(..., sampler=...)`:

    Shuffled(n)      Sequential(n)      Weighted(weights)      ByLength(lengths, group)
    Mixed(sizes, weights)               with concat(...): several sources in fixed shares

Data sets, without a network:

    digits()                        handwritten digits (scikit-learn)
    standard_library()              the sources of Python, as characters
    text(path)                      a text file as characters or bytes; `.windows(length)` of it
    tokens(path)                    memory-mapped tokens, for `Windows(tokens, length)`
    csv(path, target=...)           a table of numbers and words
    npz(path)  npy(path)  safetensors(path)
    idx(path)  mnist(folder)        the format of MNIST, gzipped or not
    images(folder)                  a folder of images for each class (Pillow)
    split(dataset, held_out)        two parts of any of these
    concat(first, second, ...)      several put together

A `datasets.Dataset` of Hugging Face goes into `Loader` as it is, an `IterableDataset` into `Stream`.

Start reading at `loader.py`.
"""

from ftrain.data._fetch import sample_keys
from ftrain.data.arrays import npy, npz, safetensors
from ftrain.data.cursor import Cursor
from ftrain.data.digits import digits
from ftrain.data.idx import idx, mnist
from ftrain.data.images import images
from ftrain.data.loader import Loader
from ftrain.data.samplers import ByLength, Mixed, Sampler, Sequential, Shuffled, Weighted
from ftrain.data.splits import concat, split
from ftrain.data.stream import Stream
from ftrain.data.table import csv
from ftrain.data.text import Text, Windows, standard_library, text, tokens

__all__ = [
    "ByLength",
    "Cursor",
    "Loader",
    "Mixed",
    "Sampler",
    "Sequential",
    "Shuffled",
    "Stream",
    "Text",
    "Weighted",
    "Windows",
    "concat",
    "csv",
    "digits",
    "idx",
    "images",
    "mnist",
    "npy",
    "npz",
    "safetensors",
    "sample_keys",
    "split",
    "standard_library",
    "text",
    "tokens",
]
