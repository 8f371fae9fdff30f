"""Random generators that a dataset or sampler keeps itself: `self.rng = np.random.default_rng(0)`.

Their state depends on everything that was drawn before, so that a resumed run, or a worker, would draw
other numbers. They are seeded where the global generators are.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

__all__ = ["own_generators", "seed_own_generators"]

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
#: Largest number of items of a list or dict, such as a list of transforms, and depth of the search.
_ITEMS, _DEPTH = 64, 8


def own_generators(source: Any) -> list[Any]:
    """Return the random generators that an object holds in its attributes, directly or nested.

    Large lists and dicts, which hold samples, are not searched.
    """
    found: list[Any] = []
    seen: dict[int, Any] = {}
    level = [source]
    for _ in range(_DEPTH):
        following: list[Any] = []
        for value in level:
            if id(value) in seen or isinstance(value, (torch.Tensor, np.ndarray, type)):
                continue
            seen[id(value)] = value
            if isinstance(value, _GENERATORS):
                found.append(value)
            elif isinstance(value, (list, tuple)):
                following += value if len(value) <= _ITEMS else ()
            elif isinstance(value, dict):
                following += value.values() if len(value) <= _ITEMS else ()
            else:
                following += getattr(value, "__dict__", {}).values()
        level = following
    return found


def seed_own_generators(generators: list[Any], key: torch.Tensor) -> None:
    """Seed generators, each differently, from one key."""
    if not generators:
        return
    high, low = key.tolist()
    start = (high & 0x7FFFFFFF) << 32 | (low & 0xFFFFFFFF)
    for place, generator in enumerate(generators):
        seed = (start + place) % 2**63
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif isinstance(generator, np.random.Generator):
            bits = generator.bit_generator
            bits.state = type(bits)(seed).state
        elif isinstance(generator, np.random.RandomState):
            generator.seed([seed >> 32, seed & 0xFFFFFFFF])
        else:
            generator.seed(seed)
