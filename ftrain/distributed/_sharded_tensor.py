"""Tensor whose rows are on several ranks; operators give the same result as on the whole tensor.

An optimizer's update on such tensors is the update of one process, whatever the optimizer is:

- An elementwise operator runs on the rows of each rank.
- The reductions of `_sharded_reductions.py` run on the rows, and combine the results of all ranks.
- Any other operator gets the whole tensor, gathered from all ranks; its result is the same on all.

With an `OrderedGroup`, this includes reductions, and elementwise operators that may round an element
differently in another place: then the bits are those of one process as well.

So every operator returns the right result, but an operator without a rule costs traffic. In-place
operators that are not elementwise raise, and so do those on a view of a sharded tensor (`x[0] = 0`).

Read next: `_sharded_optimizer.py`, which runs optimizers on these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrain.core._torch_collectives import Group, all_gather
from ftrain.core._torch_dispatch import names_of
from ftrain.core._torch_wrapper import (
    Wrapper,
    flattened,
    is_mutable,
    is_pointwise,
    is_view,
    plain,
    replaced,
    wrap,
    written,
)
from ftrain.distributed._ordered import OrderedGroup

__all__ = [
    "ROUNDED_BY_RANK",
    "ROUNDS_ALIKE",
    "RULES",
    "ShardedTensor",
    "local_rows",
    "rounds_alike",
    "rows_of",
    "whole",
]

aten = torch.ops.aten


class ShardedTensor(Wrapper):
    """Tensor whose rows are on several ranks; this rank holds rows `rank * n` to `rank * n + n - 1`.

    Attributes:
        local: the rows of this rank, contiguous: `[n, ...]`, where `n` is the number of all rows divided
            by the number of ranks, rounded up.
            Rows beyond the last one are padding, whose values are not part of the tensor.
        group: the ranks.
    """

    local: torch.Tensor
    group: Group

    @staticmethod
    def __new__(cls, local: torch.Tensor, rows: int, group: Group) -> ShardedTensor:
        """Return the tensor with `rows` rows in total; `local` has the rows of this rank."""
        local = local.contiguous()
        self: ShardedTensor = wrap(cls, (rows, *local.shape[1:]), local, local.stride())
        self.local, self.group = local, group
        return self

    def plain(self) -> torch.Tensor:
        """Return the tensor with all rows, gathered from all ranks."""
        return whole(self.local, self.shape[0], self.group)

    def memory(self) -> torch.Tensor:
        """Return this rank's rows, the part of the tensor that this process has in memory."""
        return self.local

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch gives a default
        """Return a text with the shape and the rank, without reading values."""
        return (
            f"ShardedTensor(shape={tuple(self.shape)}, rank={self.group.rank} of {self.group.size})"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "ShardedTensor: expected a plain tensor to copy or pickle, got a tensor whose rows are on "
            "several ranks. Call torch.clone on it."
        )

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch gives defaults
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if _View in types:
            args, kwargs = _without_views(func, args, kwargs)
        kwargs = kwargs or {}
        leaves, structure = flattened((args, kwargs))
        sharded = [x for x in leaves if isinstance(x, ShardedTensor)]
        if not sharded:
            return func(*args, **kwargs)
        ordered = any(isinstance(x.group, OrderedGroup) for x in sharded)
        rule = RULES.get(func)
        if rule is not None and not (ordered and func in ROUNDED_BY_RANK):
            result = rule(func, args, kwargs)
            if result is not NotImplemented:
                return result
        by_rows = is_pointwise(func) or func in ELEMENTWISE
        if by_rows and (not ordered or rounds_alike(func, args, kwargs)):
            result = _by_rows(func, args, leaves, structure)
            if result is not NotImplemented:
                return result
        _refuse_writes(ShardedTensor, func, args, kwargs)
        whole_leaves = [x.plain() if isinstance(x, ShardedTensor) else x for x in leaves]
        args, kwargs = structure.unflatten(whole_leaves)
        result = func(*args, **kwargs)
        return replaced(torch.Tensor, _View, result) if is_view(func) else result


class _View(Wrapper):
    """Read-only result of a view operator on a `ShardedTensor`; in-place writes to it raise.

    Attributes:
        content: the tensor.
    """

    content: torch.Tensor

    @staticmethod
    def __new__(cls, content: torch.Tensor) -> _View:
        """Return a wrapper of `content` that raises if it is written to."""
        self: _View = wrap(cls, content.shape, content, content.stride())
        self.content = content
        return self

    def plain(self) -> torch.Tensor:
        """Return the wrapped tensor."""
        return self.content

    def memory(self) -> torch.Tensor:
        """Return the wrapped tensor."""
        return self.content

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch gives a default
        """Return a text with the shape, without reading values."""
        return f"view of a ShardedTensor(shape={tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch gives defaults
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = _without_views(func, args, kwargs)
        result = func(*args, **kwargs)
        return replaced(torch.Tensor, _View, result) if is_view(func) else result


def _without_views(func: Any, args: Sequence[Any], kwargs: Any) -> tuple[Any, Any]:
    """Unwrap each `_View` among the arguments of an operator; raise if the operator writes to one."""
    kwargs = kwargs or {}
    _refuse_writes(_View, func, args, kwargs)
    plain_ones: tuple[Any, Any] = replaced(_View, plain, (args, kwargs))
    return plain_ones


def _refuse_writes(kind: type[Wrapper], func: Any, args: Sequence[Any], kwargs: Any) -> None:
    """Raise if an operator writes to a tensor of the class `kind`."""
    if any(isinstance(x, kind) for x in flattened(written(func, args, kwargs))[0]):
        raise NotImplementedError(
            f"{func}: expected only elementwise operators to write to a tensor whose rows are on "
            "several ranks, got another operator, or a view such as x[0]. Write the out-of-place form: "
            "x = torch.where(...), not x[0] = 0."
        )


#: Rules of operators that are neither elementwise nor run on whole tensors.
#: Each is `(func, args, kwargs) -> result`, or `NotImplemented` for arguments that it does not cover.
RULES: dict[Any, Callable[[Any, Sequence[Any], dict[str, Any]], Any]] = {}

#: Operators with a rule whose results are rounded differently for other numbers of ranks.
ROUNDED_BY_RANK: set[Any] = set()

#: Elementwise operators, without a trailing underscore, that round an element alike wherever it is in a
#: tensor: loops of vector instructions and of their remainders may approximate `exp` differently.
ROUNDS_ALIKE = frozenset(
    {
        "abs",
        "add",
        "addcdiv",
        "addcmul",
        "bitwise_and",
        "bitwise_not",
        "bitwise_or",
        "bitwise_xor",
        "clamp",
        "clamp_max",
        "clamp_min",
        "clone",
        "div",
        "eq",
        "ge",
        "gt",
        "isfinite",
        "isinf",
        "isnan",
        "le",
        "logical_and",
        "logical_not",
        "logical_or",
        "logical_xor",
        "lt",
        "masked_fill",
        "maximum",
        "minimum",
        "mul",
        "ne",
        "neg",
        "reciprocal",
        "relu",
        "rsub",
        "sgn",
        "sign",
        "sqrt",
        "sub",
        "where",
    }
)

#: Elementwise operators that torch does not tag as such.
ELEMENTWISE = frozenset(
    {
        aten._to_copy.default,
        aten.alias.default,
        aten.copy.default,
        aten.copy_.default,
        aten.detach.default,
        aten.empty_like.default,
        aten.fill.Scalar,
        aten.fill.Tensor,
        aten.fill_.Scalar,
        aten.fill_.Tensor,
        aten.full_like.default,
        aten.lift_fresh.default,
        aten.ones_like.default,
        aten.zero_.default,
        aten.zeros_like.default,
    }
)


def rounds_alike(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return True if an element's bits do not depend on its index in an elementwise operator's input."""
    if kwargs.get("alpha", 1) != 1 and any(torch.is_tensor(x) and x.itemsize < 4 for x in args):
        return (
            False  # x.add(y, alpha=0.3) in 16 bits does not (torch 2.13, with vector instructions)
        )
    name = names_of(func)[0].rstrip("_")
    is_square = name == "pow" and len(args) == 2 and args[1] == 2 and not torch.is_tensor(args[1])
    return func in ELEMENTWISE or name in ROUNDS_ALIKE or is_square


def rows_of(rows: int, group: Group) -> tuple[int, int]:
    """Return the number of rows on each rank, and the number of rows on this rank without padding."""
    n = -(-rows // group.size)
    return n, max(0, min(n, rows - group.rank * n))


def local_rows(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """Return this rank's rows of a whole tensor, padded with zeros, contiguous."""
    n, real = rows_of(tensor.shape[0], group)
    rows = tensor.narrow(0, min(group.rank * n, tensor.shape[0]), real)
    if real == n:
        return rows.contiguous()
    return torch.cat([rows, tensor.new_zeros((n - real, *tensor.shape[1:]))])


def whole(local: torch.Tensor, rows: int, group: Group) -> torch.Tensor:
    """Return the whole tensor with `rows` rows, gathered from the rows `local` of each rank."""
    sent = local.to(torch.uint8) if local.dtype is torch.bool else local  # gloo has no bool
    return all_gather(sent, group).flatten(0, 1).narrow(0, 0, rows).to(local.dtype)


def _by_rows(func: Any, args: Sequence[Any], leaves: Sequence[Any], structure: Any) -> Any:
    """Run an elementwise operator on this rank's rows; return `NotImplemented` if shapes differ.

    Args:
        func: the operator.
        args: its positional arguments.
        leaves: the leaves of its positional and keyword arguments.
        structure: the structure of `(args, kwargs)`.
    """
    first = next(x for x in leaves if isinstance(x, ShardedTensor))
    shape, group = first.shape, first.group
    if is_mutable(func) and not isinstance(args[0], ShardedTensor):
        return NotImplemented
    on_rank = []
    for x in leaves:
        if isinstance(x, ShardedTensor):
            if x.shape != shape or x.group != group:
                return NotImplemented
            on_rank.append(x.local)
        elif isinstance(x, torch.Tensor) and x.ndim:
            if not _broadcasts(x.shape, shape):
                return NotImplemented
            has_rows = x.ndim == len(shape) and x.shape[0] == shape[0] > 1
            on_rank.append(local_rows(x, group) if has_rows else x)
        else:
            on_rank.append(x)
    local_args, local_kwargs = structure.unflatten(on_rank)
    result = func(*local_args, **local_kwargs)
    if is_mutable(func):
        return args[0]
    if isinstance(result, torch.Tensor):
        return ShardedTensor(result, shape[0], group)
    return replaced(torch.Tensor, lambda x: ShardedTensor(x, shape[0], group), result)


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Return True if a tensor of shape `shape` can be broadcast to the shape `to`."""
    if len(shape) > len(to):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))
