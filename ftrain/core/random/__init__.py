"""Random streams that belong to a key: Threefry-2x32, with the bits of JAX.

A draw is a pure function of its key: the same bits eager, compiled, vmapped, on a CPU or an accelerator;
nothing reads or moves torch's global generators. `keys.py` makes and branches keys, `sample.py` draws
from them, `keyed.py` makes torch's own functions do so. How is in the files with a leading underscore,
`_operators.py` first.
"""

from ftrain.core.random.keyed import keyed, next_key
from ftrain.core.random.keys import fold_in, key, key_data, split
from ftrain.core.random.sample import bernoulli, bits, normal, permutation, randint, uniform

__all__ = [
    "bernoulli",
    "bits",
    "fold_in",
    "key",
    "key_data",
    "keyed",
    "next_key",
    "normal",
    "permutation",
    "randint",
    "split",
    "uniform",
]
