"""Random numbers as pure functions of a key, bit for bit those of JAX (Threefry-2x32).

A draw is a pure function of its key: it has the same bits in eager, compiled and vmapped code, on a CPU
or an accelerator, and does not use torch's global generators. `keys.py` makes keys and derives keys from
them; `sample.py`, `continuous.py`, `discrete.py`, `gammas.py` and `vectors.py` draw from them;
`keyed.py` makes torch's own functions draw from them. The files with a leading underscore hold the
implementation; begin with `_operators.py`.
"""

from ftrain.core.random.continuous import exponential, gumbel, laplace, truncated_normal
from ftrain.core.random.discrete import categorical, choice, poisson, rademacher
from ftrain.core.random.gammas import beta, dirichlet, gamma
from ftrain.core.random.keyed import keyed, next_key
from ftrain.core.random.keys import fold_in, key, key_data, split
from ftrain.core.random.sample import bernoulli, bits, normal, permutation, randint, uniform
from ftrain.core.random.vectors import ball, multivariate_normal, orthogonal

__all__ = [
    "ball",
    "bernoulli",
    "beta",
    "bits",
    "categorical",
    "choice",
    "dirichlet",
    "exponential",
    "fold_in",
    "gamma",
    "gumbel",
    "key",
    "key_data",
    "keyed",
    "laplace",
    "multivariate_normal",
    "next_key",
    "normal",
    "orthogonal",
    "permutation",
    "poisson",
    "rademacher",
    "randint",
    "split",
    "truncated_normal",
    "uniform",
]
