"""Hypothesis strategies for trees of tensors, and byte-wise comparisons."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import torch

from ftrain.core import tree


@tree.register_dataclass
class Pair:
    """The smallest state that can be donated."""

    a: Any
    b: Any


def same_bytes(x: Any, y: Any) -> bool:
    def packed(leaf: torch.Tensor) -> torch.Tensor:
        return leaf.clone(memory_format=torch.contiguous_format)

    return tree.digest(tree.map(packed, x)) == tree.digest(tree.map(packed, y))


def addresses(value: Any) -> list[int]:
    return [leaf.untyped_storage().data_ptr() for leaf in tree.leaves(value) if leaf.numel()]


def apart(*values: Any) -> bool:
    """Return True if no two tensors share memory."""
    found = addresses(values)
    return len(set(found)) == len(found)


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])


@st.composite
def tensors(draw: Any, shape: Any = None, dtype: Any = None) -> torch.Tensor:
    chosen = draw(dtypes) if dtype is None else dtype
    size = draw(shapes) if shape is None else shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    value = torch.randint(-9, 9, size, generator=generator)
    if draw(st.booleans()) and value.ndim == 2:
        value = value.t().contiguous().t()
    return value.to(chosen)


def trees(leaves: Any) -> Any:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.text("abc'\"\\ ", max_size=3), inner, max_size=3),
            st.builds(Pair, inner, inner),
            st.just(None),
        ),
        max_leaves=6,
    )
