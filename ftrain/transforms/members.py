"""Members of a stacked state: stack states, and select one member, several, or the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch

from ftrain.core import tree
from ftrain.core._words import kind
from ftrain.core.compile import is_tracing

__all__ = ["Mode", "best", "member", "select", "stack"]

T = TypeVar("T")
Mode = Literal["min", "max"]


def stack(trees: Sequence[T]) -> T:
    """Stack trees of the same structure into one tree, whose leaves have a new leading axis.

    Stack states for an ensemble, one batch for each member for `sweep(..., batches="own")`, and
    consecutive batches for `scan`.

    Args:
        trees: at least one; leaves at the same path have the same shape, dtype and device.

    Raises:
        ValueError: there is no tree, or structures, shapes or dtypes differ; the message names the path.
        TypeError: a leaf is not a tensor.

    Example:
        >>> stack([{"x": torch.tensor([1, 2])}, {"x": torch.tensor([3, 4])}])
        {'x': tensor([[1, 2],
                [3, 4]])}
    """
    trees = list(trees)
    if not trees:
        raise ValueError("trees: expected at least one, got 0. Pass a list of trees.")
    first = trees[0]
    for i, other in enumerate(trees):
        difference = tree.first_difference(other, first)
        if difference is not None:
            raise ValueError(
                f"trees[{i}] differs from trees[0] in structure: {difference}. Pass trees with the same "
                "structure."
            )
        for path, a, b in zip(
            tree.paths(first), tree.leaves(first), tree.leaves(other), strict=True
        ):
            if not isinstance(b, torch.Tensor):
                raise TypeError(
                    f"trees[{i}]{path}: expected a tensor, got {type(b).__name__}. Convert it: "
                    "torch.as_tensor(...)."
                )
            if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
                raise ValueError(
                    f"trees[{i}]{path}: expected {kind(a)} on {a.device}, as in trees[0], got {kind(b)} "
                    f"on {b.device}. Pad to one shape, or convert with .to(...)."
                )
    stacked: T = tree.map(lambda *leaves: torch.stack(leaves), first, *trees[1:])
    return stacked


def member(states: T, i: int) -> T:
    """Return a copy of member `i` of a stacked state or of stacked metrics.

    Args:
        states: a tree whose leaves have the members on their first axis.
        i: its position; negative positions count from the end.

    Raises:
        IndexError: there are fewer members.
        ValueError: a leaf has no axis, or leaves differ in their number of members.

    Example:
        >>> member({"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, 1)
        {'w': tensor([3., 4.])}
    """
    n = size(states, "states")
    if not -n <= i < n:
        raise IndexError(f"i: expected a position in [{-n}, {n}), got {i}. Count members from 0.")
    row: T = tree.map(lambda leaf: leaf[i].clone(), states)
    return row


def select(states: T, rows: torch.Tensor | Sequence[int]) -> T:
    """Return the members at some positions as a smaller stacked state.

    A step of fewer members costs less. `ftrain.compile` makes one program for each number of members.
    Call `compile` again for the smaller state, because a compiled function warns when it compiles again.

    Args:
        states: a tree whose leaves have the members on their first axis.
        rows: int64 positions, `(k,)`, or a bool mask of all members, `(n,)`.

    Raises:
        ValueError: no member is selected, or `rows` has another shape.

    Example:
        >>> select({"w": torch.tensor([1.0, 2.0, 3.0])}, torch.tensor([True, False, True]))
        {'w': tensor([1., 3.])}
    """
    n = size(states, "states")
    index = torch.as_tensor(rows)
    if index.ndim != 1 or (index.dtype == torch.bool and len(index) != n):
        raise ValueError(
            f"rows: expected positions of shape (k,) or a bool mask of shape ({n},), got {kind(index)}."
            " Pass a list of positions."
        )
    if index.dtype == torch.bool:
        index = index.nonzero()[:, 0]
    if not len(index):
        raise ValueError("rows: expected at least one member, got 0. Select one.")
    chosen: T = tree.map(lambda leaf: leaf.index_select(0, index.to(leaf.device)), states)
    return chosen


def best(states: T, values: torch.Tensor, mode: Mode = "min") -> T:
    """Return the member with the best value as an ordinary state; NaN is worse than any number.

    Args:
        states: a tree whose leaves have the members on their first axis.
        values: `(n,)`, one per member, such as `metrics["loss"]` of an evaluation.
        mode: `"min"` if smaller is better, `"max"` if larger is.

    Raises:
        ValueError: `values` has another shape; all are NaN (not checked in compiled code).

    Example:
        >>> best({"w": torch.tensor([1.0, 2.0, 3.0])}, torch.tensor([0.5, 0.1, float("nan")]))
        {'w': tensor(2.)}
    """
    n = size(states, "states")
    order = ranking(values, n, mode)
    if not is_tracing() and bool(values.isnan().all()):
        raise ValueError(
            "values: expected a number for at least one member, got NaN for all. Lower the learning "
            "rates of the sweep."
        )
    first = order[:1]
    row: T = tree.map(lambda leaf: leaf.index_select(0, first.to(leaf.device))[0].clone(), states)
    return row


def size(states: Any, name: str, axis: str = "members") -> int:
    """Return the length of the leading axis of a stacked tree; raise if leaves differ in this length.

    Args:
        states: the tree.
        name: of the tree, for messages.
        axis: what the axis counts, for messages.

    Raises:
        ValueError: a leaf has no axis, or leaves differ in the length of the first.
    """
    leaves = tree.leaves(states)
    if all(isinstance(leaf, torch.Tensor) and leaf.ndim for leaf in leaves):
        lengths = {leaf.shape[0] for leaf in leaves}
        if len(lengths) == 1:
            return int(lengths.pop())
    found: dict[int, str] = {}
    for path, leaf in zip(tree.paths(states), leaves, strict=True):
        if not isinstance(leaf, torch.Tensor) or not leaf.ndim:
            raise ValueError(
                f"{name}{path}: expected a leading axis of {axis}, got {kind(leaf)}. Stack trees with "
                "ftrain.transforms.stack."
            )
        found.setdefault(leaf.shape[0], path)
    listed = ", ".join(f"{name}{path} has {n}" for n, path in found.items()) or "no leaf"
    raise ValueError(
        f"{name}: expected the same number of {axis} in every leaf, got {listed}. Stack whole trees."
    )


def ranking(values: torch.Tensor, n: int, mode: Mode) -> torch.Tensor:
    """Return the positions of `n` members from best to worst, int64; equal ones in order, NaN last.

    Raises:
        ValueError: the shape of `values` is not `(n,)`, or `mode` is unknown.
    """
    if mode not in ("min", "max"):
        raise ValueError(f"mode: expected 'min' or 'max', got {mode!r}. Write mode='min'.")
    if values.shape != (n,):
        raise ValueError(
            f"values: expected one number per member, shape ({n},), got {kind(values)}. Reduce other "
            "axes first."
        )
    missing = values.isnan()
    known = torch.where(missing, 0, values.to(torch.float64))
    order = torch.argsort(known, stable=True, descending=mode == "max")
    return order[torch.argsort(missing[order].to(torch.int8), stable=True)]
