"""Hypothesis strategy of random keys."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ftrain.core import random

__all__ = ["keys"]


def keys(seeds: SearchStrategy[int] | None = None) -> SearchStrategy[torch.Tensor]:
    """Return a strategy of keys, `ftrain.random.key(seed)`, which shrink to `key(0)`.

    Args:
        seeds: a strategy of integer seeds; default: all integers in [0, 2^32).

    Example:
        >>> from hypothesis import find
        >>> find(keys(), lambda key: True)
        tensor([0, 0], dtype=torch.int32)
    """
    return st.builds(random.key, st.integers(0, 2**32 - 1) if seeds is None else seeds)
