"""Tools to compare gradients in float64, with every random draw replaced by a constant.

Read next: `accumulation.py`, `gradients.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._torch_dispatch import DispatchMode, OpOverload, names_of
from ftrain.core.random._keyed_reach import is_seeded
from ftrain.testing._copies import copied

__all__ = ["ConstantDraws", "doubled", "finite", "in_float64", "is_float", "is_inexact"]

#: Operators of ftrain whose results can be replaced by constants, because no rejection loop uses them.
_DRAWS = ("threefry_bernoulli", "threefry_uniform", "threefry_normal")


def is_float(x: Any) -> bool:
    """Return True for a tensor of a floating-point dtype."""
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def finite(x: torch.Tensor) -> torch.Tensor:
    """Return the mask of the finite elements; unlike `torch.isfinite`, for 8-bit floats too."""
    return (x.float() if x.is_floating_point() and x.element_size() == 1 else x).isfinite()


def is_inexact(x: Any) -> bool:
    """Return True for a tensor of a floating-point or complex dtype."""
    return isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())


def doubled(values: Any) -> Any:
    """Return a copy of a tree with its floating tensors in float64."""
    return tree.map(lambda x: x.double() if is_float(x) else x, copied(values))


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Set the default dtype to float64 during a `with` block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class ConstantDraws(DispatchMode):
    """Dispatch mode that replaces random draws by constants, independent of key and number of rows.

    Uniform and normal draws return 0.5. Dropout keeps every element.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not isinstance(func, OpOverload):
            return out
        if func.namespace == "ftrain" and names_of(func)[0] in _DRAWS:
            return out.fill_(1 if out.dtype == torch.bool else 0.5)
        if is_seeded(func) and names_of(func)[0] == "native_dropout":
            return args[0].clone(), torch.ones_like(out[1])
        if is_seeded(func) and is_float(out):
            return out.fill_(0.5)
        return out
