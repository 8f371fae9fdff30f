"""Hashes of (purpose, seed, epoch), from which the order and selection of samples are derived.

Integer arithmetic only, so the order of the data is the same on every machine and for every version
of torch and numpy. Seed and epoch are hashed together: if they were added, epoch 1 of seed 0 would
be epoch 0 of seed 1.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]


def words(purpose: str, seed: int, epoch: int, *more: int) -> Words:
    """Return sixteen 32-bit words, a hash of a purpose, a seed and an epoch."""
    numbers = b"".join(
        number.to_bytes(16, "little", signed=True) for number in (seed, epoch, *more)
    )
    digest = hashlib.blake2b(numbers, key=purpose.encode(), digest_size=64).digest()
    return np.frombuffer(digest, dtype="<u4").astype(np.uint32)


def mix(x: Words, key_0: np.uint32, key_1: np.uint32) -> Words:
    """Return a hash of each 32-bit word of `x`, a bijection for fixed keys.

    This is the finalizer of MurmurHash3 (Appleby, 2011), with one key added before it and one in its
    middle.
    """
    h = x ^ key_0
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h += key_1
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    return h


def uniform(positions: NDArray[np.int64], keys: Words) -> NDArray[np.float64]:
    """Return a float64 in [0, 1) for each position below 2^32, with 53 random bits from two hashes."""
    low = positions.astype(np.uint32)
    first = mix(mix(low, keys[0], keys[1]), keys[2], keys[3]).astype(np.uint64)
    second = mix(mix(low, keys[4], keys[5]), keys[6], keys[7]).astype(np.uint64)
    mantissa = (first << np.uint64(21)) | (second >> np.uint64(11))
    result: NDArray[np.float64] = mantissa.astype(np.float64) * 2.0**-53
    return result
