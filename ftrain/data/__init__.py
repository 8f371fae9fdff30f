"""Loaders, samplers and readers: the batches of a run are a pure function of (seed, epoch, position).

Each batch comes with a cursor, the position after the batch. A cursor can be saved, and reading can
start at any cursor without delay:

    Loader(dataset, batch_size, seed=0)    data with length and items: arrays, lists, map-style datasets
    Stream(source, batch_size)             iterables; loaders of other libraries
    Cursor                                 position of a run in its data: seed, epoch, position
    Padded(batch, weight)                  a batch that is not a mapping, with `last_batch="pad"`
    sample_keys(seed, epoch, positions)    keys for the augmentation of samples

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
    concat(first, second, ...)      several data sets in sequence
    select(dataset, columns)        some entries of each sample
    with_outputs(dataset, fn, path) a dataset with a function's outputs, stored in a file

A `datasets.Dataset` of Hugging Face works in `Loader` unchanged, an `IterableDataset` in `Stream`.

Start reading at `loader.py`.
"""

from ftrain.core.padded import Padded
from ftrain.data._fetch import sample_keys
from ftrain.data.arrays import npy, npz, safetensors
from ftrain.data.cursor import Cursor
from ftrain.data.digits import digits
from ftrain.data.idx import idx, mnist
from ftrain.data.images import images
from ftrain.data.loader import Loader
from ftrain.data.outputs import with_outputs
from ftrain.data.samplers import ByLength, Mixed, Sampler, Sequential, Shuffled, Weighted
from ftrain.data.select import select
from ftrain.data.splits import concat, split
from ftrain.data.stream import Stream
from ftrain.data.table import csv
from ftrain.data.text import Text, Windows, standard_library, text, tokens

__all__ = [
    "ByLength",
    "Cursor",
    "Loader",
    "Mixed",
    "Padded",
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
    "select",
    "split",
    "standard_library",
    "text",
    "tokens",
    "with_outputs",
]
