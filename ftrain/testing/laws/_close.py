"""Comparison of results that may differ by rounding, such as eager and compiled ones.

Read next: `compiled.py`, `vmap.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core._torch_dispatch import DispatchMode
from ftrain.testing._copies import copied
from ftrain.testing.difference import Difference, dense, first_difference
from ftrain.testing.laws._exact import finite, is_inexact

__all__ = ["LOOSE", "Apart", "apart_by_leaf", "apart_by_tree", "smooth", "tolerance"]

#: Relative norm of a whole state after a step of any optimizer. Adam turns the rounding noise of a
#: gradient that is mathematically 0 (a bias before BatchNorm) into an update of full size.
LOOSE = 2e-2

#: Relative norms for gradients and metrics, by the least precise dtype of a call.
_SMALL = 1e-3
_SMOOTH = ("loss", "grad_norm")
_RELATIVE = {
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
    torch.float32: 1e-4,
    torch.complex64: 1e-4,
    torch.bfloat16: 5e-2,
    torch.float16: 5e-3,
}


class Apart(NamedTuple):
    """Leaf whose two values differ by more than allowed.

    Attributes:
        difference: its first element that differs.
        distance: the relative norm; `None` if the leaf must be equal in bytes.
        relative: the largest relative norm that is allowed.
    """

    difference: Difference
    distance: float | None
    relative: float

    def __str__(self) -> str:
        """Return the difference and the distance in one line."""
        if self.distance is None:
            return str(self.difference)
        return f"{self.difference} (relative norm {self.distance:.3g}, at most {self.relative:.3g})"


def tolerance(fn: Callable[..., Any], args: tuple[Any, ...]) -> float:
    """Return the relative tolerance of the least precise float dtype that a call computes in."""
    copies, mode = copied(args), _Dtypes()
    with mode:
        fn(*copies)
    return max((_RELATIVE[dtype] for dtype in mode.dtypes if dtype in _RELATIVE), default=0.0)


def smooth(metrics: Any, relative: float) -> Any:
    """Return the metrics that are smooth in the inputs; an accuracy may jump because of rounding.

    Args:
        metrics: a mapping; only `loss` and `grad_norm` are returned, or all metrics if it has neither.
        relative: the tolerance; if it is at most 1e-3, all metrics are returned.
    """
    if (
        relative <= _SMALL
        or isinstance(metrics, torch.Tensor)
        or not hasattr(metrics, "__contains__")
    ):
        return metrics
    return {name: metrics[name] for name in _SMOOTH if name in metrics} or metrics


class _Dtypes(DispatchMode):
    """Dispatch mode that records the floating dtypes of operator results, also under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        outputs = out if isinstance(out, (tuple, list)) else (out,)
        self.dtypes.update(x.dtype for x in outputs if is_inexact(x))
        return out


def apart_by_leaf(got: Any, expected: Any, relative: float) -> Apart | None:
    r"""Return the first leaf that differs by more than the tolerance of a leaf; `None` if none does.

    Floats may differ by `relative` times the norm of the leaf, or times the norm that a leaf of its size
    has on average in this tree, if that is more. Other leaves must have the same bytes, and infinities
    and NaNs must be at the same places.
    """
    exact = _apart_exactly(got, expected, is_exact=relative == 0.0)
    if exact is not None or relative == 0.0:
        return exact
    leaves = _floats(got, expected)
    size = sum(float(b.square().sum()) for _, _, b in leaves)
    count = sum(b.numel() for _, _, b in leaves)
    for path, a, b in leaves:
        typical = (size * b.numel() / max(count, 1)) ** 0.5
        apart, norm = float((a - b).norm()), max(float(b.norm()), typical)
        if apart > relative * norm:
            return _apart(got, expected, path, apart / norm if norm else 1.0, relative)
    return None


def apart_by_tree(got: Any, expected: Any, relative: float) -> Apart | None:
    """Return the leaf that differs most; `None` if the trees' relative distance is within `relative`."""
    exact = _apart_exactly(got, expected, is_exact=relative == 0.0)
    if exact is not None or relative == 0.0:
        return exact
    leaves = _floats(got, expected)
    distances = {path: float((a - b).square().sum()) for path, a, b in leaves}
    size = sum(float(b.square().sum()) for _, _, b in leaves)
    distance = (sum(distances.values()) / size) ** 0.5 if size else float(any(distances.values()))
    if distance <= relative:
        return None
    return _apart(got, expected, max(distances, key=distances.__getitem__), distance, relative)


def _apart_exactly(got: Any, expected: Any, *, is_exact: bool) -> Apart | None:
    """Return a difference that no tolerance allows: in structure, dtype, NaNs, or non-float leaves.

    Args:
        is_exact: compare the bytes of floats as well.
    """
    if is_exact or tree.structure(got) != tree.structure(expected):
        difference = first_difference(got, expected)
        return None if difference is None else Apart(difference, None, 0.0)
    for path, a, b in zip(tree.paths(got), tree.leaves(got), tree.leaves(expected), strict=True):
        if is_inexact(a) and is_inexact(b) and (a.dtype, a.shape) == (b.dtype, b.shape):
            if not bool((finite(a) | finite(b)).all()):
                a, b = (torch.where(finite(x), 0.0, x) for x in (a, b))  # noqa: PLW2901
            else:
                continue
        difference = first_difference(a, b)
        if difference is not None:
            return Apart(dataclasses.replace(difference, path=path), None, 0.0)
    return None


def _floats(got: Any, expected: Any) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    rows = zip(tree.paths(got), tree.leaves(got), tree.leaves(expected), strict=True)
    return [(path, _finite(a), _finite(b)) for path, a, b in rows if is_inexact(b)]


def _finite(x: torch.Tensor) -> torch.Tensor:
    real = torch.view_as_real(dense(x)) if x.is_complex() else dense(x)
    return torch.nan_to_num(real.double(), nan=0.0, posinf=0.0, neginf=0.0)


def _apart(got: Any, expected: Any, path: str, distance: float, relative: float) -> Apart | None:
    leaves = dict(
        zip(tree.paths(got), zip(tree.leaves(got), tree.leaves(expected), strict=True), strict=True)
    )
    difference = first_difference(*leaves[path])
    if difference is None:
        return None
    return Apart(dataclasses.replace(difference, path=path), distance, relative)
