"""Pseudorandom permutations of 0 .. n-1 whose elements are computed one by one, in O(1) memory.

This is a Feistel network over pairs (left, right) with left < a, right < b and a b just above n (Black
and Rogaway, "Ciphers with arbitrary finite domains", 2002): each round adds a hash of one half to the
other, modulo its size. A result outside [0, n) is put through the network again until it is inside
("cycle walking"), which is needed for about one value in sqrt(n).

Eight rounds suffice for large halves. For tiny halves, permutations are not equally likely (a
chi-squared test detects this up to n of about a thousand), so up to 4,096 numbers are sorted by hashes
instead.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ftrain.data._hash import Words, mix

ROUNDS = 8
SORTED = 4096

#: The largest n, because the halves and the sums in a round must fit into 32 bits.
LARGEST = 2**32


def permuted(positions: NDArray[np.int64], n: int, keys: Words) -> NDArray[np.int64]:
    """Return the elements at these positions of a permutation of 0 .. n-1, selected by `keys`.

    Args:
        positions: int64 with one or more axes, each element in [0, n).
        n: the length, from 1 to 2^32.
        keys: uint32 `(16,)`; they choose the permutation, two words for each round.

    Returns:
        int64 in the shape of `positions`; over all positions, each number in [0, n) occurs once.
    """
    if n <= SORTED:
        hashes = mix(mix(np.arange(n, dtype=np.uint32), keys[0], keys[1]), keys[2], keys[3])
        order: NDArray[np.int64] = np.argsort(hashes)  # no ties: the hash is a bijection of 32 bits
        return order[positions]
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    b += b % 2  # if both sizes were odd, every permutation would be even
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
    hashed >>= np.uint32(1)  # 31 bits, so that adding a half of up to 17 bits cannot overflow
    hashed += half
    hashed %= size
    return hashed
