"""Search for the first leaf that differs between two pytrees, by bytes.

For `torch.equal`, `0.0` equals `-0.0` and NaN differs from itself; a comparison of bytes avoids both.

Read next: `report.py`, the error that carries a difference.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from typing import Any, Literal

import numpy as np
import torch

from ftrain.core import tree

__all__ = ["Difference", "dense", "first_difference", "ulps"]

Kind = Literal["structure", "dtype", "shape", "values"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclasses.dataclass(frozen=True)
class Difference:
    """First leaf that differs between two trees, with the kind and size of the difference.

    Attributes:
        path: the leaf, as `tree.paths` spells it; empty if the tree is a leaf.
        index: the first element that differs; `None` if structure, dtype or shape does.
        got: the element, a Python number; text if structure, dtype or shape differs.
        expected: the corresponding element of the other tree.
        ulps: the number of floats from one value to the other; `None` for a NaN and for other dtypes.
        count: the number of elements of this leaf that differ.
        total: the number of elements of this leaf.
        kind: what differs: "structure", "dtype", "shape" or "values".

    >>> print(first_difference({"w": torch.tensor([1.0, 2.0])}, {"w": torch.ones(2)}))
    ['w'] at (1,): expected 1.0, got 2.0 (8388608 ulps; 1 of 2 elements differ)
    """

    path: str
    index: tuple[int, ...] | None
    got: Any
    expected: Any
    ulps: int | None
    count: int
    total: int
    kind: Kind = "values"

    @property
    def detail(self) -> str:
        """Return the difference in one line, without the path of the leaf."""
        if self.kind == "structure":
            return f"expected {self.expected}, got {self.got}"
        if self.kind != "values":
            return f"expected {self.kind} {self.expected}, got {self.got}"
        values = f"expected {_brief(self.expected)}, got {_brief(self.got)}"
        if self.index is None:
            return values
        apart = "" if self.ulps is None else f"{self.ulps} ulp{'s' * (self.ulps != 1)}; "
        return f"{values} ({apart}{self.count} of {self.total} elements differ)"

    def __str__(self) -> str:
        """Return the difference in one line."""
        if self.kind == "structure":
            return f"at {self.path or 'the root'}: {self.detail}"
        at = "" if self.index is None else f" at {self.index}"
        return f"{self.path or 'the tree'}{at}: {self.detail}"


def first_difference(got: Any, expected: Any) -> Difference | None:
    """Return the first difference of two trees in structure, dtype, shape or bytes, or `None`.

    Leaves are compared in the order of `tree.leaves`; those that are not tensors by class and value.

    Args:
        got: a tree.
        expected: the tree that it should equal.

    >>> first_difference({"x": torch.tensor(0.0)}, {"x": torch.tensor(0.0)}) is None
    True
    >>> first_difference(torch.tensor(0.0), torch.tensor(-0.0)).count
    1
    """
    if tree.structure(got) != tree.structure(expected):
        return _structural(got, expected)
    for path, a, b in zip(tree.paths(got), tree.leaves(got), tree.leaves(expected), strict=True):
        difference = _of_leaves(path, a, b)
        if difference is not None:
            return difference
    return None


def ulps(a: torch.Tensor, b: torch.Tensor) -> int | None:
    """Return the number of representable floats between two 0-d tensors; `None` if it is undefined.

    >>> ulps(torch.tensor(1.0), torch.tensor(1.0000001))
    1
    """
    if not a.is_floating_point() or a.dtype != b.dtype or a.element_size() not in _INTEGERS:
        return None
    if bool(a.isnan()) or bool(b.isnan()):
        return None
    one, two = (_ordered(x) for x in (a, b))
    return abs(one - two)


def _ordered(x: torch.Tensor) -> int:
    """Return a float's rank among all floats of its dtype; 0 for both zeros."""
    bits = int(x.reshape(1).view(_INTEGERS[x.element_size()]).item())
    return bits if bits >= 0 else -(bits + (1 << (8 * x.element_size() - 1)))


def _of_leaves(path: str, a: Any, b: Any) -> Difference | None:
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return None if _is_same_object(a, b) else Difference(path, None, a, b, None, 1, 1)
    total = a.numel()
    if _are_equal(a, b):
        return None
    if a.dtype != b.dtype:
        return Difference(path, None, _name(a), _name(b), None, total, total, "dtype")
    if a.shape != b.shape:
        return Difference(path, None, list(a.shape), list(b.shape), None, total, total, "shape")
    one, two = dense(a), dense(b)
    size = one.element_size()
    same = (_bytes(one) == _bytes(two)).reshape(-1, size).all(dim=1)
    if bool(same.all()):
        return None
    first = int((~same).nonzero()[0])
    index = tuple(int(i) for i in np.unravel_index(first, tuple(one.shape)))
    x, y = one.reshape(-1)[first], two.reshape(-1)[first]
    return Difference(path, index, x.item(), y.item(), ulps(x, y), int((~same).sum()), total)


def _are_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return True if two plain CPU tensors have the same bytes; False for any other tensors.

    Elements are compared as integers of the same size, without a copy: this takes a fiftieth of the time
    of a comparison of bytes.
    """
    if (a.dtype, a.shape) != (b.dtype, b.shape) or not (_is_plain(a) and _is_plain(b)):
        return False
    integer = _INTEGERS.get(a.element_size(), torch.int64)  # two int64 for a complex128
    # Not reshape(-1): for an axis of length 0 or 1 it keeps a stride of 0, and `view` raises for that.
    one, two = (x.detach().as_strided((x.numel(),), (1,)).view(integer) for x in (a, b))
    return torch.equal(one, two)


def _is_plain(x: torch.Tensor) -> bool:
    """Return True for a contiguous CPU tensor of class `Tensor` or `Parameter`."""
    return (
        type(x) in (torch.Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and x.is_contiguous()
        and not (x.is_conj() or x.is_neg())
    )


def dense(x: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy of a tensor on the CPU."""
    plain = x.detach().cpu().resolve_conj().resolve_neg()
    return (
        plain.to_dense()
        if plain.layout != torch.strided
        else plain.clone(memory_format=torch.contiguous_format)
    )


def _bytes(t: torch.Tensor) -> torch.Tensor:
    return t.reshape(-1).view(torch.uint8)


def _name(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _is_same_object(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    try:
        return _pickled(a) == _pickled(b)
    except Exception:  # cannot be pickled, such as a lambda or an open file
        return bool(a == b)


class _Pickler(pickle.Pickler):
    """Pickler for comparisons, which writes the bytes of tensors and the states of generators."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Generator):
            return torch.Generator, (str(value.device), value.get_state().numpy().tobytes())
        if isinstance(value, torch.Tensor):
            kind = (type(value).__qualname__, str(value.dtype), tuple(value.shape))
            return torch.Tensor, (
                *kind,
                _bytes(dense(value)).numpy().tobytes(),
                value.requires_grad,
            )
        return NotImplemented


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def _structural(got: Any, expected: Any) -> Difference:
    text = tree.first_difference(got, expected) or "at the root: expected another structure"
    where, _, said = text.partition(": ")
    path = where.removeprefix("at ")
    wanted, _, received = said.removeprefix("expected ").rpartition(", got ")
    if not wanted:  # the text is "'x' is missing" or "'y' was not expected"
        wanted, received = _entry(said)
    return Difference(
        "" if path == "the root" else path, None, received, wanted, None, 0, 0, "structure"
    )


def _entry(said: str) -> tuple[str, str]:
    if said.endswith(" is missing"):
        return f"an entry {said.removesuffix(' is missing')}", "none"
    return "no such entry", f"an entry {said.removesuffix(' was not expected')}"


def _brief(value: Any) -> str:
    """Format a number with the digits of its dtype, and any other value as one short line."""
    if isinstance(value, float):
        short = float(f"{value:.9g}")
        return (
            repr(short)
            if np.float32(short) == np.float32(value) and _is_single(value)
            else repr(value)
        )
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_single(value: float) -> bool:
    with np.errstate(over="ignore"):
        return float(np.float32(value)) == value
