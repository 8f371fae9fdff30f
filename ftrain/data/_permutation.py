"""Pseudorandom permutations of 0 .. n-1 whose elements are computed one by one, in O(1) memory.

A Feistel network over pairs (left, right) with left < a, right < b and a b just above n (Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002): each round adds a hash of one half to the
other, modulo its size. A result outside [0, n) passes through again until it is inside ("cycle
walking"): with a near the square root of n that is about one value in sqrt(n).

Eight rounds mix large halves; over tiny ones they do not reach all permutations equally often (a
chi-squared test sees it up to n of about a thousand). Up to 4,096 numbers are sorted by hashes
instead.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ftrain.data._hash import Words, mix

ROUNDS = 8
SORTED = 4096

#: The halves and the sums in a round must fit 32 bits.
LARGEST = 2**32


def permuted(positions: NDArray[np.int64], n: int, keys: Words) -> NDArray[np.int64]:
    """Return the elements at these positions of a permutation of 0 .. n-1, selected by `keys`.

    Args:
        positions: int64, each in [0, n); one axis or more.
        n: the length, from 1 to 2^32.
        keys: uint32 `(16,)`; they choose the permutation, two words for each round.

    Returns:
        int64, of the shape of `positions`; over all positions each number in [0, n) once.
    """
    if n <= SORTED:
        hashes = mix(mix(np.arange(n, dtype=np.uint32), keys[0], keys[1]), keys[2], keys[3])
        order: NDArray[np.int64] = np.argsort(hashes)  # no ties: the hash is a bijection of 32 bits
        return order[positions]
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    b += b % 2  # were both sizes odd, every permutation would be an even one
    out = _network(positions, a, b, keys)
    outside = np.nonzero(out >= n)
    while outside[0].size:
        walked = _network(out[outside], a, b, keys)
        out[outside] = walked
        still = walked >= n
        outside = tuple(axis[still] for axis in outside)
    return out


def _network(x: NDArray[np.int64], a: int, b: int, keys: Words) -> NDArray[np.int64]:
    quotient, remainder = np.divmod(x, b)
    left, right = quotient.astype(np.uint32), remainder.astype(np.uint32)
    size_left, size_right = np.uint32(a), np.uint32(b)
    for turn in range(0, 2 * ROUNDS, 4):
        left = _add(left, mix(right, keys[turn], keys[turn + 1]), size_left)
        right = _add(right, mix(left, keys[turn + 2], keys[turn + 3]), size_right)
    result: NDArray[np.int64] = left.astype(np.int64) * b + right
    return result


def _add(half: Words, hashed: Words, size: np.uint32) -> Words:
    hashed >>= np.uint32(1)  # 31 bits and a half of at most 17: no overflow
    hashed += half
    hashed %= size
    return hashed
