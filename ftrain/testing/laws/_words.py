"""Texts of amounts and remedies in reports, such as `1 leaf, 12 bytes`."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree

__all__ = ["KEYS", "amount", "plural"]


#: Remedy for a random generator in the state.
KEYS = (
    "Keep a key in the state instead, ftrain.random.key(seed): in the step, write `key, use = "
    "ftrain.random.split(state['key'])` and draw inside `with ftrain.random.keyed(use):`."
)


def amount(values: Any) -> str:
    """Return the number of leaves and of bytes of a tree, as text.

    >>> amount({"w": torch.zeros(3)})
    '1 leaf, 12 bytes'
    """
    leaves = tree.leaves(values)
    size = sum(x.numel() * x.element_size() for x in leaves if isinstance(x, torch.Tensor))
    return f"{plural(len(leaves), 'leaf', 'leaves')}, {size:,} bytes"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return a count with its noun in the singular or plural.

    >>> plural(1, "call"), plural(2, "call")
    ('1 call', '2 calls')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
