"""Hypothesis strategy of batches like an example batch, optionally with ragged weights."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ftrain.core import tree
from ftrain.testing.strategies.tensors import tensors

__all__ = ["batches"]


def batches(
    spec: Any,
    *,
    rows: int | SearchStrategy[int] | None = None,
    weight: str | None = None,
    allow_zero_weight: bool = False,
    **options: Any,
) -> SearchStrategy[Any]:
    """Return a strategy of batches with the structure of `spec`, which shrink to zeros.

    Args:
        spec: a tree. A tensor is replaced by tensors of its shape and dtype, with integers in the range
            of its values (0 or 1 for a tensor on the meta device). A Hypothesis strategy is replaced by
            its values. Any other leaf is used as it is.
        rows: the size of the first axis of every tensor, or a strategy of it; default: as in `spec`.
        weight: the path of a tensor of weights, as `tree.paths` spells it, or a key of `spec`. The
            weights are drawn from 0 and 1. For the shape `(rows, length)`, each row has ones up to a
            length of its own, then zeros; for the shape `(rows,)`, each row has the weight 0 or 1.
        allow_zero_weight: True to draw total weight 0 too.
        **options: arguments of `tensors` for floating tensors: `max_value=1.0`, `allow_nan=True`.

    Raises:
        ValueError: `weight` is not a path of `spec`; `rows` is given and a leaf has no axis.

    Example:
        >>> from hypothesis import find
        >>> example = {"x": torch.zeros(2, 3), "mask": torch.ones(2, 3)}
        >>> ragged = batches(example, weight="mask")
        >>> find(ragged, lambda batch: bool(batch["mask"].sum() == 3))["mask"]
        tensor([[0., 0., 0.],
                [1., 1., 1.]])
    """
    leaves, structure = tree.flatten(spec)
    paths = tree.paths(spec)
    weights = _weight_path(weight, paths)
    if rows is not None:
        _check_rows(leaves, paths)
    sizes = rows if isinstance(rows, SearchStrategy) else st.just(rows)

    @st.composite
    def drawn(draw: Any) -> Any:
        n = draw(sizes)
        batch = []
        for path, leaf in zip(paths, leaves, strict=True):
            if path == weights:
                batch.append(draw(_ragged(_shape(leaf, n), leaf.dtype, allow_zero_weight)))
            else:
                batch.append(draw(_like(leaf, n, options)))
        return tree.unflatten(structure, batch)

    return drawn()


def _weight_path(weight: str | None, paths: list[str]) -> str | None:
    if weight is None:
        return None
    for path in (weight, f"[{weight!r}]", f".{weight}"):
        if path in paths:
            return path
    listed = f" ({', '.join(paths)})" if paths else ", which has none"
    raise ValueError(
        f"weight: expected the path of a leaf of the spec{listed}, got {weight!r}. Write the path of "
        "the leaf that holds the weights of the rows."
    )


def _check_rows(leaves: list[Any], paths: list[str]) -> None:
    for path, leaf in zip(paths, leaves, strict=True):
        if isinstance(leaf, SearchStrategy) or (isinstance(leaf, torch.Tensor) and not leaf.ndim):
            got = "a strategy" if isinstance(leaf, SearchStrategy) else "a 0-d tensor"
            raise ValueError(
                f"rows: expected a first axis at spec{path}, got {got}. Leave `rows` out, and let a "
                "strategy draw batches of several sizes: sizes.flatmap(lambda n: batches(...))."
            )


def _shape(leaf: torch.Tensor, rows: int | None) -> tuple[int, ...]:
    return tuple(leaf.shape) if rows is None else (rows, *leaf.shape[1:])


def _like(leaf: Any, rows: int | None, options: dict[str, Any]) -> SearchStrategy[Any]:
    if isinstance(leaf, SearchStrategy):
        return leaf
    if not isinstance(leaf, torch.Tensor):
        return st.just(leaf)
    shape = _shape(leaf, rows)
    if leaf.is_floating_point():
        return tensors(shape, leaf.dtype, **options)
    if leaf.is_meta or not leaf.numel():
        return tensors(shape, leaf.dtype, min_value=0, max_value=1)
    low, high = int(leaf.min()), int(leaf.max())
    return tensors(shape, leaf.dtype, min_value=low, max_value=high)


@st.composite
def _ragged(draw: Any, shape: tuple[int, ...], dtype: torch.dtype, allow_zero: bool) -> Any:
    """Draw weights of 0 and 1: ones, then zeros along the last axis; in any order for a 1-d tensor."""
    if len(shape) < 2:
        counts = draw(st.lists(st.booleans(), min_size=shape[0], max_size=shape[0]))
        if not allow_zero and counts and not any(counts):
            counts[0] = True
        return torch.tensor(counts, dtype=dtype)
    *outer, length = shape
    n = torch.Size(outer).numel()
    lengths = draw(st.lists(st.integers(0, length), min_size=n, max_size=n))
    if not allow_zero and lengths and not any(lengths):
        lengths[0] = min(1, length)
    mask = torch.arange(length) < torch.tensor(lengths, dtype=torch.int64).reshape(*outer, 1)
    return mask.to(dtype)
